"""Who may ask, and how much."""

import hashlib
import hmac
import logging
import math
import secrets
import stat
from contextlib import ExitStack
from types import SimpleNamespace

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from mllm_sched.edge import users as module
from mllm_sched.edge.refusals import Refusal
from mllm_sched.edge.service import Gate
from mllm_sched.edge.users import User, Users, add, load_yaml


def digest(token):
    return hashlib.sha256(token.encode()).hexdigest()


def written(tmp_path, content, mode=0o600):
    path = tmp_path / "users.yaml"
    path.write_text(content if isinstance(content, str) else yaml.safe_dump(content))
    path.chmod(mode)
    return path


def an_entry(name="ann", token="of ann", **more):
    return {"name": name, "token_sha256": digest(token), **more}


def test_a_token_says_who_asks_and_any_other_says_nobody(tmp_path):
    path = written(tmp_path, [an_entry(), an_entry("bob", "of bob", rate_hz=3, front=True)])
    users = Users.read(path)
    assert users.who("of bob") == User("bob", digest("of bob"), rate_hz=3.0, front=True)
    assert users.who("of ann").name == "ann"
    strange = ("", "of änn", "\ud800", "x" * 10**6)
    for wrong in (None, "of eve", "OF ANN", " of ann", digest("of ann"), *strange):
        assert users.who(wrong) is None


@pytest.mark.parametrize("token", ["of user 0", "of user 5", "of user 9", "of nobody"])
def test_a_token_is_compared_in_constant_time_with_every_user_whoever_it_is(monkeypatch, token):
    users = Users([User(f"user-{n}", digest(f"of user {n}")) for n in range(10)])
    compared = []

    def spy(a, b):
        compared.append((a, b))
        return hmac.compare_digest(a, b)

    monkeypatch.setattr(module, "hmac", SimpleNamespace(compare_digest=spy))
    users.who(token)
    assert compared == [(digest(f"of user {n}"), digest(token)) for n in range(10)]


def test_a_system_without_tokens_serves_anyone_as_one_user_without_limits():
    anyone = Users.anyone().who(None)
    assert (anyone.name, anyone.rate_hz, anyone.front) == ("anyone", math.inf, True)
    assert Users.anyone().who("whatever") == anyone


def test_a_front_asks_for_users_it_knows_and_they_have_their_weight_if_it_is_known_here():
    users = Users([User("ann", digest("of ann"), weight=2.0)])
    assert users.named("ann").weight == 2.0
    assert users.named("bob") == User("bob", rate_hz=math.inf, at_once=1 << 30)
    with pytest.raises(ValueError, match="name of a user: String should match pattern"):
        users.named("../bob")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("", "expected a list of users"),
        ("- ann", "user 1: expected fields and their values"),
        ("- name: [", "not YAML in line"),
        ("- {name: ann, name: bob}", "a field stands twice in the entry of line 1"),
        ([an_entry(), {"name": "bob"}], r"user 2 \(bob\), token_sha256: Field required"),
        ([an_entry(colour="red")], r"user 1 \(ann\), colour: no such field; expected name, token"),
        ([an_entry(rate_hz=math.nan)], r"user 1 \(ann\), rate_hz: .*greater than 0"),
        ([an_entry(burst=1.5)], r"user 1 \(ann\), burst: .*valid integer"),
        ([an_entry(weight=math.inf)], r"user 1 \(ann\), weight: .*finite"),
        ([an_entry(front="yes")], r"user 1 \(ann\), front: .*valid boolean"),
        ([an_entry("an/n")], "user 1, name: String should match pattern"),
        ([an_entry(), an_entry("ann", "other")], "user 2, name: ann stands there twice"),
        ([an_entry(), an_entry("bob")], r"user 2 \(bob\), token_sha256: ann has it too"),
        ([{"name": "ann", "token_sha256": "abc"}], r"\(ann\), token_sha256: expected 64 digits"),
    ],
)
def test_what_is_wrong_is_told_by_file_entry_and_field(tmp_path, content, said):
    path = written(tmp_path, content)
    with pytest.raises(ValueError, match=said) as error:
        Users.read(path)
    assert str(error.value).startswith(f"{path}: ")


def test_a_token_in_the_wrong_place_is_not_shown_in_any_error(tmp_path):
    token = secrets.token_urlsafe(32)
    wrong = [
        [{"name": "ann", "token": token}],
        [{"name": "ann", "token_sha256": token}],
        [{"name": token, "token_sha256": digest(token)}],
        [{"name": "ann", token: "x"}],
        [token],
        f"- name: ann\n  token_sha256: '{token}",
        f"- name: ann\n token_sha256: {token}: [",
    ]
    for content in wrong:
        path = written(tmp_path, content)
        with pytest.raises(ValueError, match=r"users\.yaml") as error:
            Users.read(path)
        shown = f"{error.value!r} {error.value.__cause__!r}"
        assert token not in shown and digest(token) not in shown


def test_neither_tokens_nor_digests_stand_in_any_repr_or_log(tmp_path, caplog):
    path = tmp_path / "users.yaml"
    with caplog.at_level(logging.DEBUG):
        token = add(path, "ann")
        path.chmod(0o644)
        users = Users.read(path)
        shown = f"{users.who(token)!r} {users.who(token)} {users!r} {caplog.text}"
    assert token not in shown and digest(token) not in shown
    with pytest.raises(ValueError, match="expected 64 digits") as error:
        User("ann", token)
    assert token not in f"{error.value} {error.value!r}"


def test_a_file_that_others_may_read_is_complained_of_and_read(tmp_path, caplog):
    Users.read(written(tmp_path, [an_entry()]))
    assert not caplog.records
    assert Users.read(written(tmp_path, [an_entry()], mode=0o640)).who("of ann")
    assert "others than its owner can use it" in caplog.text


def test_a_user_is_added_with_its_digest_only_and_what_was_there_stays(tmp_path):
    path = written(tmp_path, "# ours\n- name: ann\n  token_sha256: " + digest("of ann"))
    token = add(path, "bob", rate_hz=2.5, front=True)
    text = path.read_text()
    assert text.startswith("# ours\n- name: ann") and token not in text
    users = Users.read(path)
    assert users.who(token) == User("bob", digest(token), rate_hz=2.5, front=True)
    assert users.who("of ann").name == "ann"


def test_a_user_that_would_spoil_the_file_is_not_added(tmp_path):
    path = tmp_path / "users.yaml"
    with pytest.raises(ValueError, match="rate_hz"):
        add(path, "ann", rate_hz=-1.0)
    assert not path.exists()
    add(path, "ann")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    before = path.read_bytes()
    for name, more in (("ann", {}), ("bob", {"weight": 0.0}), ("b b", {}), ("bob", {"x": 1})):
        with pytest.raises(ValueError, match=r"users\.yaml: user "):
            add(path, name, **more)
    assert path.read_bytes() == before


def test_a_full_disk_leaves_the_users_file_as_it_was(tmp_path, monkeypatch):
    path = tmp_path / "users.yaml"
    add(path, "ann")
    before = path.read_bytes()

    def full(_):
        raise OSError("no space left on device")

    monkeypatch.setattr(module.os, "fsync", full)
    with pytest.raises(OSError, match="no space"):
        add(path, "bob")
    assert path.read_bytes() == before


def test_calls_that_bring_nothing_are_few_for_each_user():
    gate, user = Gate(), User("ann", at_once=1)
    with ExitStack() as stack:
        for _ in range(4):
            stack.enter_context(gate.call(user))
        with pytest.raises(Refusal, match="4 calls of ann are open"), gate.call(user):
            pass
        stack.enter_context(gate.call(User("bob", at_once=1)))
    with gate.call(user):
        pass


@given(
    st.lists(st.floats(0.0, 2.0), max_size=30),
    st.floats(0.1, 50.0),
    st.integers(1, 10),
)
def test_no_span_of_time_sees_more_requests_than_burst_and_rate_allow(pauses, rate_hz, burst):
    gate, user, now_s, passed = Gate(), User("ann", rate_hz=rate_hz, burst=burst), 0.0, []
    for pause_s in pauses:
        now_s += pause_s
        try:
            gate.enter(user, now_s)
        except Refusal as turned:
            now_s += turned.retry_s  # as told, and then it may
            gate.enter(user, now_s)
        gate.leave(user)
        passed.append(now_s)
    for first, begin_s in enumerate(passed):
        for count, end_s in enumerate(passed[first:], 1):
            assert count <= burst + rate_hz * (end_s - begin_s) + 1e-3


@pytest.mark.parametrize(
    ("reason", "code"),
    [
        *((one, "RESOURCE_EXHAUSTED") for one in ("rate", "queue-full", "pushed-out", "too-late")),
        *(("journal", "UNAVAILABLE"), ("draining", "UNAVAILABLE")),
        ("cannot", "FAILED_PRECONDITION"),
    ],
)
def test_a_refusal_has_a_status_and_says_when_to_ask_again(reason, code):
    refusal = Refusal(reason, "because", retry_s=2.0)
    assert (refusal.code.name, str(refusal)) == (code, f"{reason}: because; ask again in 2 s")
    assert dict(refusal.metadata) == {"refused": reason, "retry-s": "2"}
    assert dict(Refusal(reason, "because", retry_s=math.inf).metadata) == {"refused": reason}


def test_a_field_of_an_anchor_may_stand_again():
    loaded = load_yaml(b"base: &base {waiting: 9, batch: 1}\nqueue: {<<: *base, batch: 4}\n")
    assert loaded["queue"] == {"waiting": 9, "batch": 4}
