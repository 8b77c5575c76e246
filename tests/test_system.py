"""A front, two agents and an LLM server as processes: what users see when parts of it die."""

import os
import signal
import threading
import time
from contextlib import ExitStack

import numpy as np
import pytest

from mllm_sched.edge.journal import read_journal
from mllm_sched.edge.keeper import Keeper
from mllm_sched.edge.load import User, jain, keep_asking
from mllm_sched.edge.system import LocalSystem
from mllm_sched.pipeline.link import Link
from mllm_sched.pipeline.media import photograph
from mllm_sched.pipeline.requests import Item
from mllm_sched.pipeline.small_models import END

AGENTS = ("edge-1", "edge-2")
USERS = {f"user-{number}": {"rate_hz": 1000.0, "burst": 1000} for number in range(4)}
NEW_TOKENS = 8


def images(number):
    return (Item("image", np.roll(photograph("china", 56, 84), 3 * number, axis=1)),)


def complete(tokens):
    return len(tokens) == NEW_TOKENS or tokens[-1] == END


@pytest.fixture(scope="module")
def running(tmp_path_factory):
    """A system, and the link between its agents and the LLM server."""
    agents = {
        "edge-1": {"device": "host", "scheduler": {"limit_s": 0.5}},
        "edge-2": {
            "device": "agx-orin-sim",
            "scheduler": {"limit_s": 0.2},
            "device_settings": {"speed": 10},
        },
    }
    folder = tmp_path_factory.mktemp("system")
    system = LocalSystem(folder, agents, front=True, users=USERS)
    with Link(system.llm) as link:
        system.llm = link.address
        with system:
            yield system, link


@pytest.fixture
def users(running):
    system, _ = running
    with ExitStack() as opened:
        yield [
            User(name, opened.enter_context(system.client(name)), images, 60.0, NEW_TOKENS)
            for name in USERS
        ]


def measured(system):
    return {name: read_journal(system.journal(name)) for name in AGENTS}


def test_tasks_go_to_several_agents_and_each_says_what_its_numbers_are(running, users):
    system, _ = running
    asked = keep_asking(users, tasks=6)
    assert set(asked["outcome"]) == {"answered"}
    assert asked["tokens"].map(complete).all()
    assert set(asked["agent"]) == set(AGENTS)
    evidence = asked.groupby("agent")["evidence"].unique().map(list).to_dict()
    assert evidence == {"edge-1": ["measured"], "edge-2": ["simulated"]}
    tables = measured(system)
    assert sum(map(len, tables.values())) >= len(asked)
    assert set(tables["edge-2"]["evidence"]) == {"simulated"}


def test_users_who_ask_alike_get_alike(users):
    asked = keep_asking(users, seconds=3.0)
    assert jain(asked["user"].value_counts()) > 0.9


def test_whatever_is_killed_is_missed_by_nobody_and_nothing_acknowledged_is_lost(running, users):
    system, _ = running
    done = []
    with Keeper(system.processes) as keeper:
        asking = threading.Thread(target=lambda: done.append(keep_asking(users, seconds=12.0)))
        asking.start()
        for name in ("edge-1", "server", "front", "edge-2"):
            time.sleep(1.5)
            os.kill(system.processes[name].pid, signal.SIGKILL)
        asking.join()
        after = keep_asking(users, tasks=2)
        assert set(keeper.restarts) == {"edge-1", "server", "front", "edge-2"}
    (asked,) = done
    assert set(asked["outcome"]) <= {"answered", "shed"}
    assert set(after["outcome"]) == {"answered"}
    answered = asked[asked["outcome"] == "answered"]
    assert not answered["id"].duplicated().any()
    assert answered["tokens"].map(complete).all()
    journals = measured(system)
    for row in answered.itertuples():
        table = journals[row.agent]
        assert ((table["user"] == row.user) & (table["latency_s"] == row.latency_s)).any()


def test_a_link_that_is_cut_for_ten_seconds_sheds_and_then_goes_on(running, users):
    _, link = running
    done = []
    asking = threading.Thread(target=lambda: done.append(keep_asking(users, seconds=12.0)))
    asking.start()
    time.sleep(1.0)
    link.cut(10.0)
    asking.join()
    (asked,) = done
    assert set(asked["outcome"]) == {"answered"}  # their deadline is a minute
    assert asked["total_s"].max() > 8
    after = keep_asking(users, tasks=2)
    assert set(after["outcome"]) == {"answered"} and after["total_s"].max() < 8
