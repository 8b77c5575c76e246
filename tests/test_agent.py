"""Edge agents as real processes: with an LLM server, users, and whatever may go wrong."""

import os
import signal

import numpy as np
import psutil
import pytest

from mllm_sched.edge.journal import read_journal
from mllm_sched.edge.load import LoadUser
from mllm_sched.edge.system import LocalSystem
from mllm_sched.pipeline.media import panned_video, photograph, speech_like
from mllm_sched.pipeline.requests import Item, Request, prompt_ids
from mllm_sched.pipeline.wire import pack

pytestmark = pytest.mark.slow

MODEL, NEW_TOKENS = "small-qwen2.5-omni", 6
USERS = {"ana": {}}
AGENT = {
    "device": "host",
    "scheduler": {"limit_s": 0.5},
    "device_settings": {"timeout_s": 1.5},
}


@pytest.fixture(scope="module")
def system(tmp_path_factory):
    folder = tmp_path_factory.mktemp("system")
    with LocalSystem(folder, {"edge-1": AGENT}, model=MODEL, users=USERS) as running:
        with running.client("ana") as client:
            for number in range(4):  # every trusted arm is loaded: a first call may take long
                LoadUser("ana", client, images, 60.0).ask(number)
        yield running


@pytest.fixture
def ana(system):
    with system.client("ana") as client:
        yield client


def images(number):
    return (Item("image", np.roll(photograph("china", 56, 84), 3 * number, axis=1)),)


def message(client, items, new_tokens=NEW_TOKENS):
    card = client.describe(60.0)
    prompt = prompt_ids(card.markers, [item.modality for item in items], b"What is this?")
    request = Request(prompt, items, new_tokens)
    return request, pack(request, card.model)


def measured(system):
    return read_journal(system.journal("edge-1"))


def test_a_task_of_every_modality_is_encoded_measured_and_answered(system, ana):
    before = len(measured(system))
    items = (
        *images(1),
        Item("audio", speech_like(1.0)),
        Item("video", panned_video("flower", 1.0, 2.0, 56, 84), 2.0),
    )
    request, data = message(ana, items)
    answer = ana.ask(data, request.id, 60.0)
    assert len(answer.tokens) == NEW_TOKENS
    new = measured(system).iloc[before:]
    assert list(new["modality"]) == ["image", "audio", "video"]
    assert list(new["latency_s"]) == [run.latency_s for run in answer.runs]
    assert list(new["user"]) == ["ana"] * 3
    assert {run.agent for run in answer.runs} == {"edge-1"}
    assert {run.evidence for run in answer.runs} == {"measured"}


def test_an_arm_that_hangs_is_left_and_the_task_is_answered_on_another(system, ana):
    before = len(measured(system))
    agent = psutil.Process(system.agents["edge-1"].pid)
    (child,) = agent.children()
    child.suspend()  # it is killed by the agent, and another one started
    request, data = message(ana, images(7))
    answer = ana.ask(data, request.id, 60.0)
    assert len(answer.tokens) == NEW_TOKENS
    new = measured(system).iloc[before:]
    assert "stopped: latency_s above" in new["failed"].iloc[0]
    assert new["failed"].iloc[-1] == ""


def test_a_killed_agent_comes_back_with_all_it_knew_and_finishes_what_it_had(system, ana):
    request, data = message(ana, images(9), new_tokens=400)
    agent, before = system.agents["edge-1"], measured(system)
    server = psutil.Process(system.server.pid)
    tokens, tries = [], 0
    for event, tries in ana.events(data, request.id, 90.0):  # noqa: B007 (used below)
        if event.WhichOneof("content") == "finished":
            break
        tokens.append(event.token.token)
        if len(tokens) == 1:
            server.suspend()  # so that the answer is surely not finished before the agent ends
            os.kill(agent.pid, signal.SIGKILL)
            server.resume()
            agent.kill()
            agent.start()
    assert tries > 1 and len(tokens) == 400
    after = measured(system)
    assert after.iloc[: len(before)].equals(before)
    arms = after.iloc[len(before) :][["precision", "threads"]]
    assert 1 <= len(arms) <= 2 and len(arms.drop_duplicates()) == 1


def test_a_task_that_is_sent_again_is_not_run_again_after_a_restart_either(system, ana):
    request, data = message(ana, images(10))
    first, before = ana.ask(data, request.id, 60.0), len(measured(system))
    agent = system.agents["edge-1"]
    for _ in range(2):
        again = ana.ask(data, request.id, 60.0)
        assert again.tokens == first.tokens and again.runs == first.runs
        assert len(measured(system)) == before
        agent.stop()
        agent.start()
