"""Nodes as processes: killed, and ended in the middle of their work."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import psutil
import pytest
from decoupled import NEW_TOKENS, OMNI, message, monolithic, request
from test_wire import MALFORMED

from mllm_sched.pipeline.edge_client import EdgeClient
from mllm_sched.pipeline.node_errors import RequestRefused
from mllm_sched.pipeline.service import NodeProcess

pytestmark = pytest.mark.slow


def test_kill_9_of_the_server_in_mid_answer_is_survived_without_a_token_twice():
    asked = request("small-llava")
    tokens = monolithic("small-llava", asked)[1]
    node = NodeProcess("serve-llm", "--model", "small-llava", "--llm-slowdown", "20")
    with node, EdgeClient(node.address) as client:
        data, seen = message("small-llava", asked)[1], []
        first_boot = client.describe().boot
        restart = threading.Thread(target=lambda: (node.kill(), node.start()))
        for event, tries in client.events(data, asked.id, 60):
            if event.WhichOneof("content") == "token":
                seen.append((event.token.index, event.token.token, tries))
                if len(seen) == 3:
                    restart.start()
        restart.join()
        assert client.describe().boot != first_boot
    assert [index for index, *_ in seen] == list(range(NEW_TOKENS))
    assert tuple(token for _, token, _ in seen) == tokens
    assert seen[0][2] == 1 and seen[-1][2] > 1


def test_a_graceful_end_finishes_the_answer_it_has_begun():
    node = NodeProcess("serve-llm", "--model", "small-llava", "--llm-slowdown", "20").start()
    asked = request("small-llava")
    with EdgeClient(node.address) as client:
        tokens, tries = [], 0
        for event, number in client.events(message("small-llava", asked)[1], asked.id, 30):
            tries = number
            if event.WhichOneof("content") == "token":
                tokens.append(event.token.token)
            if len(tokens) == 1:
                psutil.Process(node.pid).terminate()  # in the middle of the answer
        assert tuple(tokens) == monolithic("small-llava", asked)[1] and tries == 1
    node.stop()


def test_a_graceful_end_waits_for_encoders_too():
    asked = request("small-llava")
    command = ("edge", "--listen", "--model", "small-llava", "--encoders-slowdown")
    with NodeProcess(*command, "20") as node, EdgeClient(node.address) as client:
        model = client.describe().model
        first_s = client.encode(asked, model, 30)[1].encode_s / 20  # of a process; then it is warm
    node = NodeProcess(*command, f"{4 / first_s:.0f}").start()
    with EdgeClient(node.address) as client, ThreadPoolExecutor(1) as pool:
        encoding = pool.submit(client.encode, asked, model, 30)
        time.sleep(0.5)
        psutil.Process(node.pid).terminate()
        parts, times = encoding.result()
    node.stop()
    assert len(parts) == 1 and times.encode_s > 1.5  # longer than gRPC's own grace


def test_malformed_messages_leave_nothing_in_the_memory_of_a_node():
    with NodeProcess("serve-llm", "--model", OMNI) as node, EdgeClient(node.address) as client:

        def refuse_all():
            for number, (data, _) in enumerate(MALFORMED.values()):
                with pytest.raises(RequestRefused):
                    client.ask(data, f"bad {number}", 10)
            return psutil.Process(node.pid).memory_info().rss

        before = refuse_all()
        assert max(refuse_all() for _ in range(3)) - before < 16e6
