"""A front, two agents and an LLM server as processes: what users see when parts of it die."""

import json
import os
import signal
import threading
import time
from contextlib import ExitStack
from dataclasses import asdict

import numpy as np
import pandas as pd
import pytest
import trustme
from test_security import written
from waiting import until

from mllm_sched.edge.journal import read_journal
from mllm_sched.edge.load import LoadUser, keep_asking
from mllm_sched.edge.system import LocalSystem, Supervisor
from mllm_sched.pipeline.link import Link
from mllm_sched.pipeline.media import photograph
from mllm_sched.pipeline.requests import Item
from mllm_sched.pipeline.small_models import END

pytestmark = pytest.mark.slow

AGENTS = ("edge-1", "edge-2")
USERS = {f"user-{number}": {"rate_hz": 1000.0, "burst": 1000} for number in range(4)}
NEW_TOKENS = 4


def images(number):
    return (Item("image", np.roll(photograph("china", 56, 84), 3 * number, axis=1)),)


def complete(tokens):
    return len(tokens) == NEW_TOKENS or tokens[-1] == END


@pytest.fixture(scope="module")
def running(tmp_path_factory):
    """A system, all of it encrypted, and the link between its agents and the LLM server."""
    agents = {
        "edge-1": {"device": "host", "scheduler": {"limit_s": 0.5}},
        "edge-2": {
            "device": "agx-orin-sim",
            "scheduler": {"limit_s": 0.2},
            "device_settings": {"speed": 2},
        },
    }
    folder = tmp_path_factory.mktemp("system")
    tls = written(folder, trustme.CA(), "127.0.0.1")
    system = LocalSystem(folder, agents, front=True, users=USERS, tls=tls)
    with Link(system.llm) as link:
        system.llm = link.address
        with system:
            yield system, link


@pytest.fixture
def asking(running):
    """Makes users of the running system."""
    system, _ = running
    with ExitStack() as opened:

        def made(name, deadline_s=60.0, agent=""):
            client = opened.enter_context(system.client(name, agent))
            return LoadUser(name, client, images, deadline_s, NEW_TOKENS)

        yield made


def in_the_meantime(ask, users, **options):
    """Let them ask while the block runs; what became of it is in the list then."""
    done = []
    thread = threading.Thread(target=lambda: done.append(ask(users, **options)))
    thread.start()
    return thread, done


def measured(system):
    return {name: read_journal(system.journal(name)) for name in AGENTS}


def test_tasks_go_to_several_agents_and_each_says_what_its_numbers_are(running, asking):
    system, _ = running
    asked = keep_asking([asking(name) for name in USERS], tasks=4)
    assert set(asked["outcome"]) == {"answered"}
    assert asked["tokens"].map(complete).all()
    assert set(asked["agent"]) == set(AGENTS)
    evidence = asked.groupby("agent")["evidence"].unique().map(list).to_dict()
    assert evidence == {"edge-1": ["measured"], "edge-2": ["simulated"]}
    tables = measured(system)
    assert sum(map(len, tables.values())) >= len(asked)
    assert set(tables["edge-2"]["evidence"]) == {"simulated"}
    for name in AGENTS:
        log = [line for line in system.agents[name].log() if line.startswith("{")]
        assert "agent-started" in [json.loads(line)["event"] for line in log]


def test_users_get_alike_though_one_asks_four_times_as_much_and_not_all_can_be_served(asking):
    names = ["user-0"] * 12 + [name for name in USERS if name != "user-0"] * 3
    users = [asking(name, 1.0, "edge-2") for name in names]
    keep_asking([asking("user-1", agent="edge-2")], tasks=2)  # it is awake
    asked = keep_asking(users, seconds=4.0, pause_s=lambda rng: rng.uniform(0.01, 0.05))
    answers = asked[asked["outcome"] == "answered"]["user"].value_counts()
    assert not (asked["outcome"] == "answered").all()
    assert set(answers.index) == set(USERS)
    jain = answers.sum() ** 2 / (len(answers) * (answers**2).sum())
    assert jain > 0.8  # in the order of arrival it is 0.65


def test_whatever_is_killed_is_missed_by_nobody_and_nothing_acknowledged_is_lost(running, asking):
    system, _ = running
    users = [asking(name) for name in USERS]
    with Supervisor(system.processes) as supervisor:
        thread, done = in_the_meantime(keep_asking, users, seconds=5.0)
        for name in ("edge-1", "server", "front", "edge-2"):
            time.sleep(1.0)
            os.kill(system.processes[name].pid, signal.SIGKILL)
        thread.join()
        after = keep_asking(users, tasks=2)
        restarts = supervisor.restarts
        until(lambda: set(restarts) == set(system.processes), lambda: restarts)
    (asked,) = done
    assert set(asked["outcome"]) <= {"answered", "shed"}, asked["why"].unique()
    assert set(after["outcome"]) == {"answered"}
    answered = pd.concat([asked[asked["outcome"] == "answered"], after])
    assert not answered["id"].duplicated().any()
    assert answered["tokens"].map(complete).all()
    journals = measured(system)
    for row in answered.itertuples():
        table = journals[row.agent]
        assert ((table["user"] == row.user) & (table["latency_s"] == row.latency_s)).any()
    system.front.stop()
    system.front.start()  # it has no answer in memory now
    again = pd.DataFrame(asdict(one) for user in users for one in user.ask_again())
    both = again.merge(answered, on=["user", "id"], suffixes=("", "_first"))
    assert len(both) == len(again) > len(users)
    for column in ("tokens", "agent", "arm", "latency_s", "energy_j"):
        assert (both[column] == both[f"{column}_first"]).all()
    assert sum(map(len, measured(system).values())) == sum(map(len, journals.values()))


def test_an_agent_that_hangs_gets_no_new_tasks_and_loses_the_one_it_has(running, asking):
    system, _ = running
    users = [asking(name) for name in USERS]
    thread, done = in_the_meantime(keep_asking, users, seconds=5.0)
    time.sleep(1.0)
    hung = system.agents["edge-1"].pid
    os.kill(hung, signal.SIGSTOP)
    try:
        thread.join()
        assert set(keep_asking(users, tasks=1)["agent"]) == {"edge-2"}
    finally:
        os.kill(hung, signal.SIGCONT)
    assert set(done[0]["outcome"]) == {"answered"}
    assert until(lambda: "edge-1" in set(keep_asking(users, tasks=2)["agent"]))


def test_a_link_that_is_cut_sheds_those_who_cannot_wait_and_then_goes_on(running, asking):
    _, link = running
    patient = [asking(name, 60.0) for name in ("user-0", "user-1")]
    hasty = [asking(name, 1.5) for name in ("user-2", "user-3")]
    ways = {"seconds": 5.5, "pause_s": lambda rng: 0.1}
    thread, done = in_the_meantime(keep_asking, patient + hasty, **ways)
    time.sleep(0.5)
    link.cut(4.5)
    thread.join()
    outcomes = done[0].groupby("user")["outcome"].unique().map(set)
    for user in patient:
        assert outcomes[user.name] == {"answered"}
    for user in hasty:
        assert outcomes[user.name] & {"late", "shed"}
        assert outcomes[user.name] <= {"answered", "late", "shed"}
    relaxed = [asking(name) for name in USERS]
    assert set(keep_asking(relaxed, tasks=2)["outcome"]) == {"answered"}
    hasty_again = keep_asking(hasty, seconds=1.0)
    assert "answered" in set(hasty_again["outcome"])
