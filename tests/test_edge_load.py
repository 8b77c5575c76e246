"""Users who ask one task after another, in threads."""

import time

import pytest
from grpc import StatusCode as Status

from mllm_sched.edge.load import LoadUser, keep_asking
from mllm_sched.pipeline.media import photograph
from mllm_sched.pipeline.node_errors import (
    DeadlineMissed,
    NodeBusy,
    NodeUnreachable,
    RequestRefused,
)
from mllm_sched.pipeline.proto import node_pb2 as pb
from mllm_sched.pipeline.requests import Item


def images(number):
    return (Item("image", photograph("china", 56, 84)),)


class Failing:
    """In the place of a client, whose every request ends so."""

    def __init__(self, error):
        self.error = error

    def describe(self, timeout_s):
        return pb.Card(model="f" * 64, markers={"image": 1})

    def ask(self, data, name, deadline_s):
        raise self.error


@pytest.mark.parametrize("until", [{"seconds": 0.3}, {"tasks": 1}])
def test_whatever_a_service_says_users_end_when_their_time_is_over(until):
    later = NodeBusy("full", Status.RESOURCE_EXHAUSTED, reason="queue-full", retry_s=3600.0)
    user, begun_s = LoadUser("ann", Failing(later), images, 1.0), time.monotonic()
    assert list(keep_asking([user], **until)["outcome"]) == ["shed"]
    assert time.monotonic() - begun_s < 60


@pytest.mark.parametrize(
    ("error", "outcome"),
    [
        (NodeBusy("full", Status.RESOURCE_EXHAUSTED, reason="queue-full", retry_s=0.5), "shed"),
        (NodeUnreachable("full disk", Status.UNAVAILABLE, reason="journal"), "shed"),
        (NodeUnreachable("nobody there", Status.UNAVAILABLE), "failed"),
        (RequestRefused("never", Status.FAILED_PRECONDITION, reason="cannot"), "failed"),
        (RequestRefused("odd", Status.INVALID_ARGUMENT, reason="anything"), "failed"),
        (DeadlineMissed("too late", Status.DEADLINE_EXCEEDED), "late"),
    ],
)
def test_shed_is_only_what_may_be_asked_again(error, outcome):
    asked = LoadUser("ann", Failing(error), images, 1.0).ask(0)
    assert (asked.outcome, asked.retry_s) == (outcome, error.retry_s)
