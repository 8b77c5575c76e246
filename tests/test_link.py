import hashlib
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager, suppress
from socketserver import ThreadingTCPServer

import pytest

from mllm_sched.pipeline.link import Link


@contextmanager
def server(serve):
    """A TCP server that gives every connection to ``serve`` in a thread of its own."""

    def handle(connection, *_):
        with suppress(OSError):  # a test cut the connection
            serve(connection)

    with ThreadingTCPServer(("127.0.0.1", 0), handle) as listener:
        thread = threading.Thread(target=listener.serve_forever, args=(0.05,))
        thread.start()
        yield f"127.0.0.1:{listener.server_address[1]}"
        listener.shutdown()
        thread.join()


def connect(address):
    host, port = address.split(":")
    return socket.create_connection((host, int(port)), timeout=60)


def read_all(connection):
    return b"".join(iter(lambda: connection.recv(65536), b""))


def digest(connection):
    """Answers with the digest of what came."""
    connection.sendall(hashlib.sha256(read_all(connection)).digest())


def echo(connection):
    while data := connection.recv(65536):
        connection.sendall(data)


def upload(address, data):
    """Seconds until the digest of all bytes is back; wrong bytes are an error."""
    begun_s = time.monotonic()
    with closing(connect(address)) as connection:
        connection.sendall(data)
        connection.shutdown(socket.SHUT_WR)
        assert read_all(connection) == hashlib.sha256(data).digest()
    return time.monotonic() - begun_s


def test_bytes_take_the_time_that_the_rate_says():
    data = hashlib.shake_128(b"seed").digest(500_000)
    with server(digest) as target, Link(target, up_mbit_s=10, down_mbit_s=0.1) as link:
        assert upload(link.address, data) == pytest.approx(0.4, rel=0.1)
        assert link.passed().up_bytes == len(data) and link.passed().down_bytes == 32
        assert upload(link.address, b"") < 0.3


def test_two_connections_share_the_rate():
    with server(digest) as target, Link(target, up_mbit_s=10) as link:
        begun_s = time.monotonic()
        with ThreadPoolExecutor(2) as pool:
            took = list(pool.map(upload, 2 * [link.address], 2 * [bytes(250_000)]))
        assert time.monotonic() - begun_s == pytest.approx(0.4, rel=0.15)
        assert min(took) > 0.3  # neither went first


def test_the_delay_holds_both_ways():
    with server(echo) as target, Link(target, delay_s=0.05) as link:
        with closing(connect(link.address)) as connection:
            for _ in range(3):
                begun_s = time.monotonic()
                connection.sendall(b"x")
                assert connection.recv(1) == b"x"
                assert 0.1 <= time.monotonic() - begun_s < 0.2


def test_during_an_outage_nothing_passes_and_afterwards_nothing_is_lost():
    with server(digest) as target, Link(target, up_mbit_s=20) as link:
        threading.Timer(0.1, lambda: link.cut(0.5)).start()
        assert upload(link.address, bytes(1_000_000)) > 0.6
        before = link.passed()
        link.cut(0.3)
        assert upload(link.address, b"new") > 0.25
        assert link.passed().up_bytes == before.up_bytes + 3


def test_a_target_that_refuses_ends_the_connection_and_not_the_link():
    with closing(socket.create_server(("127.0.0.1", 0))) as gone:
        port = gone.getsockname()[1]
    with Link(f"127.0.0.1:{port}") as link:
        for _ in range(2):
            # The reset may come as early as in connect itself.
            with pytest.raises(ConnectionError), closing(connect(link.address)) as connection:
                assert connection.recv(1) == b"unreachable"


def test_many_connections_leave_nothing_behind():
    import psutil

    def open_files():
        return psutil.Process().num_fds(), threading.active_count()

    with server(echo) as target:
        before = open_files()
        with Link(target) as link:
            for _ in range(100):
                with closing(connect(link.address)) as connection:
                    connection.sendall(b"x")
                    assert connection.recv(1) == b"x"
        link.close()  # a second time does nothing
        ends_s = time.monotonic() + 5
        while open_files() > before and time.monotonic() < ends_s:
            time.sleep(0.05)
        assert open_files()[0] <= before[0] and threading.active_count() <= before[1]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"up_mbit_s": 0}, "up_mbit_s=0"),
        ({"down_mbit_s": -1}, "down_mbit_s=-1"),
        ({"delay_s": -0.1}, r"delay_s=-0\.1"),
        ({"target": "nowhere"}, "target='nowhere'"),
    ],
)
def test_impossible_links_are_named(settings, message):
    with pytest.raises(ValueError, match=message):
        Link(**{"target": "127.0.0.1:1", **settings})


def test_a_link_has_an_address_only_while_it_is_open():
    with pytest.raises(RuntimeError, match="not open"):
        assert Link("127.0.0.1:1").address
