"""The kernel's own link, where there are root, iproute2 and the modules for it."""

import os
import socket
import subprocess
import sys
import time

import pytest
from decoupled import OMNI, again, request

from mllm_sched.pipeline import namespaces
from mllm_sched.pipeline.link import Link
from mllm_sched.pipeline.namespaces import NamespaceError, NamespaceLink, missing
from mllm_sched.pipeline.processes import NodeProcess
from mllm_sched.pipeline.strategies import run

WHY_NOT = missing()
needs_namespaces = pytest.mark.skipif(WHY_NOT is not None, reason=str(WHY_NOT))
MEGABYTE = 1 << 20

SINK = """
import socket, sys
with socket.create_server((sys.argv[1], int(sys.argv[2]))) as server:
    print("ready", flush=True)
    connection, _ = server.accept()
    while connection.recv(65536): pass
    connection.sendall(b"all")
"""


def upload_s(address):
    """Seconds until the other side has a megabyte, and has said so."""
    host, port = address.rsplit(":", 1)
    with socket.create_connection((host, int(port))) as sender:
        begun = time.perf_counter()
        sender.sendall(bytes(MEGABYTE))
        sender.shutdown(socket.SHUT_WR)
        assert sender.recv(3) == b"all"
        return time.perf_counter() - begun


def sink(host, port, inside=()):
    command = [*inside, sys.executable, "-c", SINK, host, str(port)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "ready\n"
    return process


@needs_namespaces
def test_user_space_and_kernel_agree_on_what_a_rate_means():
    ideal_s = 8 * MEGABYTE / 10e6
    with NamespaceLink(10, 10) as link:
        process = sink(link.host, link.port, link.inside)
        kernel_s = upload_s(link.address)
        process.communicate(timeout=60)
        assert link.passed().up_bytes >= MEGABYTE
    process = sink("127.0.0.1", port := free_port())
    with Link(f"127.0.0.1:{port}", up_mbit_s=10, down_mbit_s=10) as link:
        user_s = upload_s(link.address)
    process.communicate(timeout=60)
    assert ideal_s * 0.9 < kernel_s < ideal_s * 1.3
    assert ideal_s * 0.9 < user_s < ideal_s * 1.3


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


@pytest.mark.slow
@needs_namespaces
def test_a_node_in_a_namespace_answers_over_the_kernels_link():
    asked = request(OMNI)
    with (
        NamespaceLink(20, 20) as link,
        NodeProcess("--model", OMNI, "--encoders", "--open", "--host", link.host,
                    port=link.port, inside=link.inside) as server,
        NodeProcess("--model", OMNI, "--encoders", "--no-llm") as edge,
    ):  # fmt: skip
        assert server.address == link.address
        remote = run("all-remote", asked, link, [])
        hybrid = run("hybrid", again(asked), link, [edge.address], wire="float32")
    assert remote.tokens == hybrid.tokens and len(remote.tokens) == asked.max_new_tokens
    assert remote.up_bytes > asked.bytes > 0 and remote.down_bytes > 0


def devices():
    return subprocess.run(["ip", "link"], capture_output=True, text=True, check=True).stdout


@needs_namespaces
def test_nothing_is_left_behind():
    with NamespaceLink(10, 10) as link:
        assert f"mllm{os.getpid()}a@" in devices()
    assert f"mllm{os.getpid()}" not in devices()
    link.close()  # a second time does nothing


@needs_namespaces
@pytest.mark.skipif(missing(0.02) is not None, reason=str(missing(0.02)))
def test_the_kernels_delay_holds_both_ways():
    with NamespaceLink(10, 10, delay_s=0.02) as link:
        process = sink(link.host, link.port, link.inside)
        begun = time.perf_counter()
        with socket.create_connection((link.host, link.port)):
            assert 0.04 <= time.perf_counter() - begun < 0.2
        process.communicate(timeout=60)


def test_without_root_or_iproute2_the_reason_is_named(monkeypatch):
    monkeypatch.setattr(namespaces.os, "geteuid", lambda: 1000)
    assert "root" in missing()
    monkeypatch.setattr(namespaces.os, "geteuid", lambda: 0)
    monkeypatch.setattr(namespaces.shutil, "which", lambda name: None)
    with pytest.raises(NamespaceError, match="install iproute2"), NamespaceLink(10, 10):
        pass


@pytest.mark.parametrize("settings", [{"up_mbit_s": 0}, {"down_mbit_s": -1}, {"delay_s": -0.1}])
def test_impossible_links_are_named(settings):
    with pytest.raises(ValueError, match=next(iter(settings))):
        NamespaceLink(**{"up_mbit_s": 10, "down_mbit_s": 10, **settings})
