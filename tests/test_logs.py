"""Log lines: JSON, one a line, without secrets, whatever is logged."""

import io
import json
import logging
import math
import sys
import warnings

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mllm_sched.edge import logs

LOG = logging.getLogger("mllm_sched.edge.tested")
SECRET = "t0k3n-of-ann"


@pytest.fixture
def stream(monkeypatch):
    """Where the logs go, until the test is over."""
    root, ours = logging.getLogger(), logging.getLogger("mllm_sched")
    before = root.handlers[:], root.level, ours.level
    written = io.StringIO()
    monkeypatch.setattr(sys, "stderr", written)
    logs.setup()
    yield written
    logging.captureWarnings(False)
    root.handlers[:], root.level, ours.level = before


def lines(stream):
    """Every line as an object; a line that is none is an error."""
    return [json.loads(line, parse_constant=pytest.fail) for line in stream.getvalue().splitlines()]


def test_an_event_is_one_object_with_its_fields_in_utc(stream):
    logs.say(LOG, "task-done", latency_s=0.12, arm="gpu", tokens=12)
    (line,) = lines(stream)
    assert line.pop("utc").endswith("Z")
    assert line == {
        **{"level": "info", "logger": "mllm_sched.edge.tested", "event": "task-done"},
        **{"latency_s": 0.12, "arm": "gpu", "tokens": 12},
    }


def test_an_ordinary_message_is_the_event_log(stream):
    logs.say(LOG, "quiet", "debug")
    logging.getLogger("grpc").info("news")  # libraries only from warnings on
    logging.getLogger("grpc").warning("%s of %d", "two", 3)
    logs.say(LOG, "load-100%", what="%s %d")  # is no format
    line, other = lines(stream)
    assert (line["event"], line["message"], line["level"]) == ("log", "two of 3", "warning")
    assert (other["event"], other["what"]) == ("load-100%", "%s %d")


@pytest.mark.parametrize(
    "text",
    [
        f"Bearer {SECRET}",
        f"sent authorization: bearer {SECRET} and more",
        f"authorization={SECRET}",
        f"(('authorization', 'Bearer {SECRET}'),)",
        f"_Metadatum(key='authorization', value='{SECRET}')",
        f'{{"token": "{SECRET}"}}',
        json.dumps(json.dumps({"token": SECRET})),
        f"--api-key={SECRET}",
        f"password: {SECRET}",
        "x" * (logs.LONGEST - 12) + f" Bearer {SECRET}",
        "x" * logs.LONGEST + f" Bearer {SECRET}",
    ],
)
def test_a_text_that_holds_a_secret_loses_it_wherever_it_is_logged(stream, text):
    logs.say(LOG, "asked", what=text, nested={"list": [text, {"deep": (text,)}], text: 1})
    LOG.info("got %s", text)
    warnings.warn(text, stacklevel=1)
    try:
        raise ValueError(text)
    except ValueError:
        logs.say(LOG, "failed", "error", trace=True, agent="edge-1")
    assert len(lines(stream)) == 4 and "ValueError: " in lines(stream)[-1]["exc_info"]
    assert SECRET[:4] not in stream.getvalue()


@pytest.mark.parametrize(
    "name", ["token", "token_sha256", "Authorization", "password", "client_secret", "api_key"]
)
@pytest.mark.parametrize("value", [SECRET, SECRET.encode(), [SECRET], {"is": SECRET}])
def test_a_field_with_a_secrets_name_keeps_no_value_but_a_number(stream, name, value):
    logs.say(LOG, "asked", **{name: value, "inner": {name: value}})
    logs.say(LOG, "counted", **{name: 12})
    first, second = lines(stream)
    assert first[name] == first["inner"][name] == logs.GONE and second[name] == 12
    assert SECRET not in stream.getvalue()


def test_what_counts_tokens_is_kept(stream):
    logs.say(LOG, "answered", tokens=64, max_new_tokens=np.int64(128))
    LOG.info("64 tokens in 2 s, author: Ann")
    assert lines(stream)[0]["tokens"] == 64 and lines(stream)[0]["max_new_tokens"] == 128
    assert lines(stream)[1]["message"] == "64 tokens in 2 s, author: Ann"


FORGED = '\n{"utc": "2026-01-01T00:00:00Z", "level": "error", "event": "forged"}\n'


@given(st.text(st.characters(), max_size=60) | st.sampled_from([FORGED, "\x00\x7f\x9b", "\ud800"]))
def test_no_text_of_a_user_leaves_its_line_or_moves_the_cursor(text):
    record = LOG.makeRecord(
        *(LOG.name, logging.INFO, "", 0, "asked", (), None), extra={"fields": {"user": text}}
    )
    line = logs.JsonLine().format(record)
    assert all(" " <= character <= "~" for character in line)
    if text.isprintable() and not any(word in text.lower() for word in ("token", "bearer")):
        assert json.loads(line)["user"] == text


def test_a_field_cannot_pass_for_the_time_level_or_event(stream):
    logs.say(LOG, "asked", utc="never", logger="root")
    (line,) = lines(stream)
    assert line["utc_"] == "never" and line["logger"] == LOG.name
    LOG.info("x", extra={"fields": {"event": "forged", "level": "error"}})
    assert lines(stream)[1]["event"] == "x" and lines(stream)[1]["level"] == "info"


def test_values_that_json_does_not_know_are_still_told(stream):
    logs.say(LOG, "odd", a=math.nan, b=-math.inf, c=np.float32(0.5), d={1}, e=b"raw", f=LOG)
    (line,) = lines(stream)
    assert (line["a"], line["b"], line["c"], line["d"]) == ("nan", "-inf", 0.5, [1])
    assert line["e"] == "3 bytes" and "tested" in line["f"]


def test_huge_deep_and_circular_values_are_cut_to_size(stream):
    circle = []
    circle.append(circle)
    logs.say(LOG, "huge", text="x" * 10**6, many=list(range(10**5)), circle=circle)
    (line,) = lines(stream)
    assert len(line["text"]) < logs.LONGEST + 50 and line["text"].endswith("of 1000000 characters")
    assert len(line["many"]) == logs.MOST and len(stream.getvalue()) < 10_000


def test_a_message_that_cannot_be_made_says_so_without_its_contents(stream, monkeypatch):
    class Broken:
        def __str__(self):
            raise RuntimeError(SECRET)

    monkeypatch.setattr(sys, "stderr", stream)
    logs.setup()  # without the handler of pytest, which is strict
    LOG.info("%d", f"Bearer {SECRET}")
    logs.say(LOG, "asked", what=Broken())
    whys = [line["why"] for line in lines(stream) if line["event"] == "log-failed"]
    assert whys == ["TypeError", "RuntimeError"]
    assert SECRET not in stream.getvalue()


def test_a_stderr_that_is_gone_stops_nobody(stream, capsys):
    stream.close()
    logs.say(LOG, "asked")
    assert capsys.readouterr().err == ""
