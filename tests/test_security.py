from argparse import ArgumentParser
from pathlib import Path

import pytest
import trustme
from decoupled import halves, node_here, parts_of, request
from grpc import StatusCode

from mllm_sched.pipeline.edge_client import EdgeClient
from mllm_sched.pipeline.node_errors import NodeUnreachable, RequestRefused
from mllm_sched.pipeline.options import Security, add_options, check_host, security_of
from mllm_sched.pipeline.wire import pack

NAME = "small-llava"


@pytest.fixture(scope="module")
def authority():
    return trustme.CA()


def written(folder, authority, identity):
    """Certificate, key and authority as files, under the options of a node."""
    made = authority.issue_cert(identity)
    files = {name: folder / f"{identity}.{name}.pem" for name in ("certificate", "key")}
    made.private_key_pem.write_to_path(files["key"])
    files["certificate"].write_bytes(b"".join(blob.bytes() for blob in made.cert_chain_pems))
    files["authority"] = folder / f"{identity}.authority.pem"
    authority.cert_pem.write_to_path(files["authority"])
    return files


def ask(client):
    asked = request(NAME)
    data = pack(asked, halves(NAME)[0].identity, parts_of(NAME, asked))
    return client.ask(data, asked.id, 10)


def test_a_token_is_asked_for_and_a_wrong_one_refused_in_every_call(tmp_path, capfd, caplog):
    file = tmp_path / "token"
    file.write_text("correct horse\n")
    add_options(parser := ArgumentParser())
    security = security_of(parser.parse_args(["--token-file", str(file)]))
    with node_here(NAME, security=security) as node:
        with EdgeClient(node, Security("correct horse")) as client:
            assert ask(client).tokens
        assert "horse" not in repr(security)
        for wrong in (Security(), Security("correct horsf"), Security("c"), Security("x" * 1000)):
            with EdgeClient(node, wrong) as client:
                for call in (ask, EdgeClient.describe):
                    with pytest.raises(RequestRefused, match="no token, or a wrong one") as error:
                        call(client)
                    assert error.value.code is StatusCode.UNAUTHENTICATED
                    assert "horse" not in str(error.value)
    assert "horse" not in "".join(capfd.readouterr()) + caplog.text


def test_with_certificates_only_clients_of_the_same_authority_are_served(tmp_path, authority):
    ours = written(tmp_path, authority, "localhost")
    stranger = written(tmp_path, trustme.CA(), "stranger.example")
    with node_here(NAME, security=Security(**ours)) as node:
        address = node.replace("127.0.0.1", "localhost")
        friend = Security(**written(tmp_path, authority, "edge.example"))
        with EdgeClient(address, friend) as client:
            assert ask(client).tokens
        trusting = Security(**{**stranger, "authority": ours["authority"]})
        for wrong in (Security(), trusting, Security(**stranger)):
            with EdgeClient(address, wrong) as client, pytest.raises(NodeUnreachable):
                client.describe(deadline_s=0.3)


@pytest.mark.parametrize(
    ("secrets", "reason"),
    [
        ({"certificate": Path("a"), "key": Path("b")}, "certificate, key and authority together"),
        ({"token": ""}, "ASCII"),
        ({"token": "schlüssel"}, "ASCII"),
    ],
)
def test_secrets_that_cannot_work_are_refused(secrets, reason):
    with pytest.raises(ValueError, match=reason):
        Security(**secrets)


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.9.1", "localhost", "::1", "[::1]"])
def test_loopback_needs_no_secret(host):
    check_host(host, Security())


@pytest.mark.parametrize("host", ["0.0.0.0", "192.0.2.1", "::", "example.org", ""])
def test_other_addresses_need_certificates_for_a_token_would_travel_in_the_clear(host, tmp_path):
    for clear in (Security(), Security("token")):
        with pytest.raises(ValueError, match="others can reach it, and nothing is encrypted"):
            check_host(host, clear)
    check_host(host, Security(None, *(tmp_path / name for name in "abc")))
    check_host(host, Security(), is_open=True)
