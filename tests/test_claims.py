"""Claims and their verdicts, and the documents that show them."""

import pandas as pd
import pytest

from mllm_sched import paths
from mllm_sched.experiments import claims
from mllm_sched.experiments.claims import (
    Claim,
    blocks,
    by_reading,
    evaluate,
    load_claims,
    markdown,
    other_readings,
    with_blocks,
)

REASONS = {
    "reproduced": "It is {saving, late}.",
    "partly": "Only over the whole run.",
    "not reproduced": "No: {saving, whole}.",
}
NAN = float("nan")


@pytest.fixture
def results(tmp_path, monkeypatch):
    monkeypatch.setattr(paths, "RESULTS", tmp_path)
    monkeypatch.setattr(paths, "COMMITTED", tmp_path)
    (tmp_path / "04").mkdir()
    return tmp_path / "04" / "claims.csv"


def write_numbers(file, whole, late):
    """Two numbers, each with its interval or without one."""
    rows = [
        (key, *(value if isinstance(value, tuple) else (value, NAN, NAN)), 10, "simulated")
        for key, value in (("saving, whole", whole), ("saving, late", late))
    ]
    columns = ["key", "value", "low", "high", "n", "evidence"]
    pd.DataFrame(rows, columns=columns).to_csv(file, index=False)


def claim(**changes):
    own = {"id": "saving", "claim": "It saves", "paper": "20 %", "metric": "saving of energy"}
    own |= {"value": 0.2, "direction": "at least", "tolerance": 0.2, "unit": "percent"}
    own |= {"evidence": "simulated", "notebook": "04", "show": "saving, whole", "reasons": REASONS}
    own["tests"] = [{"key": "saving, whole"}, {"key": "saving, late"}]
    return Claim(**{**own, **changes})


def judged(**changes):
    """The row of a claim."""
    (row,) = evaluate([claim(**changes)]).to_dict("records")
    return row


def write_readings(results, *rows):
    folder = results.parent.parent / "13_sensitivity"
    folder.mkdir()
    columns = ["id", "reading", "verdict"]
    pd.DataFrame(rows, columns=columns).to_csv(folder / "verdicts.csv", index=False)


@pytest.mark.parametrize(
    ("whole", "late", "verdict"),
    [
        ((0.30, 0.25, 0.35), (0.20, 0.18, 0.22), "reproduced"),
        ((0.30, 0.25, 0.35), (0.17, 0.15, 0.19), "partly"),
        ((0.17, 0.15, 0.19), (0.20, 0.18, 0.22), "not reproduced"),
        (0.30, 0.20, "reproduced"),  # without intervals
    ],
)
def test_a_verdict_needs_the_whole_interval_within_the_bounds(results, whole, late, verdict):
    write_numbers(results, whole, late)
    assert judged()["verdict"] == verdict
    own_bounds = [{"key": "saving, whole"}, {"key": "saving, late", "at_least": 0.14}]
    assert judged(tests=own_bounds)["verdict"] == verdict.replace("partly", "reproduced")


@pytest.mark.parametrize(
    ("direction", "value", "tolerance", "inside", "outside"),
    [
        ("at least", 0.2, 0.2, 0.16, 0.15),
        ("at most", 0.5, 0.2, 0.6, 0.61),
        ("close to", 1.0, 0.25, 0.8, 0.79),
        ("close to", 1.0, 0.25, 1.25, 1.26),
    ],
)
def test_direction_and_tolerance_say_what_is_asked(
    results, direction, value, tolerance, inside, outside
):
    asked = {"direction": direction, "value": value, "tolerance": tolerance, "unit": "ratio"}
    for number, verdict in ((inside, "reproduced"), (outside, "not reproduced")):
        write_numbers(results, number, number)
        assert judged(**asked)["verdict"] == verdict


def test_the_row_shows_the_number_its_interval_and_the_reason_filled_in(results):
    write_numbers(results, (0.30, 0.25, 0.35), (0.20, 0.18, 0.22))
    row = judged()
    assert row["ours"] == "30.0 % [25.0, 35.0]" and row["n"] == 10
    assert row["evidence"] == "simulated"
    assert row["reason"] == "It is 20.0 %."
    assert row["command"] == "make reproduce NOTEBOOKS=04"


def test_a_reason_may_list_what_failed_or_use_another_unit(results):
    write_numbers(results, 0.3, 0.1)
    reason = "But {failed}, {saving, late|ratio} of it."
    filled = "But saving, late is 10.0 %, 0.100 of it."
    assert judged(reasons={**REASONS, "partly": reason})["reason"] == filled


def test_claims_without_a_number_say_why(results):
    bare = {"claim": "On the board", "paper": "yes", "metric": "speed"}
    untestable = Claim(id="board", **bare, untestable="Needs a board.")
    table = evaluate([claim(), untestable, Claim(id="next", **bare, not_run="Not built yet.")])
    assert table["verdict"].tolist() == ["not run", "not testable here", "not run"]
    assert table["reason"].tolist()[1:] == ["Needs a board.", "Not built yet."]


@pytest.mark.parametrize(
    ("whole", "changes", "told"),
    [
        (0.3, {"show": "cost"}, r"claims\.csv of 04 lacks .'cost'"),
        (0.3, {"reasons": {**REASONS, "reproduced": "{speed}"}}, "no number 'speed' in 04"),
        (0.3, {"evidence": "measured"}, "'saving, whole' is simulated, but .* says measured"),
        (NAN, {}, "'saving, whole' is nan"),
    ],
)
def test_what_a_notebook_did_not_write_is_named(results, whole, changes, told):
    write_numbers(results, whole, 0.3)
    with pytest.raises(ValueError, match=f"'saving': .*{told}"):
        judged(**changes)


def test_results_of_other_parameters_may_be_of_other_evidence(results, monkeypatch):
    """As with `make reproduce DEVICE=trace:my.csv`."""
    write_numbers(results, 0.3, 0.3)
    monkeypatch.setattr(paths, "COMMITTED", results.parent)
    assert judged(evidence="measured")["evidence"] == "simulated"


WHOLE = (
    "- {id: a, claim: b, paper: c, metric: m, notebook: n, show: k, tests: [{key: k}], "
    "unit: ratio, direction: at least, value: 1, tolerance: 0, evidence: simulated}"
)
BARE = "- {id: a, claim: b, paper: c, metric: m, not_run: d}"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (BARE.replace("not_run", "colour"), "'a': colour Extra inputs are not permitted"),
        (BARE.replace(", not_run: d", ""), "'a': .*give value, .*tests, or untestable"),
        (BARE.replace("metric: m, ", ""), "'a': metric Field required"),
        (WHOLE, "'a': .*no reason for"),
        (WHOLE.replace("at least", "beyond"), "'a': direction .*'at least', .* not 'beyond'"),
        (WHOLE.replace("value: 1", "value: .nan"), "'a': value .*finite number, not nan"),
        (WHOLE.replace("tolerance: 0", "tolerance: -1"), "'a': tolerance .*greater.* not -1"),
        (f"{BARE}\n  {BARE}", "'a' is given twice"),
    ],
)
def test_a_wrong_claim_is_named(tmp_path, text, message):
    file = tmp_path / "claims.yaml"
    file.write_text(f"claims:\n  {text}")
    with pytest.raises(ValueError, match=message):
        load_claims(file)


@pytest.mark.parametrize(
    ("others", "told"),
    [
        ([("other seeds", "reproduced"), ("limit 0.1 s", "partly")], "1 of 2"),
        ([("other seeds", "partly")], "0 of 1; changes with the seeds"),
    ],
)
def test_a_row_says_how_many_other_readings_agree(results, others, told):
    write_numbers(results, 0.3, 0.3)
    write_readings(results, *(("saving", *row) for row in others), ("another", "a", "partly"))
    table = evaluate([claim()])
    assert table.iloc[0]["readings"] == told
    assert f"**partly**: {others[-1][0]}" in by_reading(table, other_readings())


# -- Documents


def test_a_document_keeps_everything_around_its_generated_parts():
    bare = {"claim": "Soon", "paper": "yes", "metric": "speed", "not_run": "Not built yet."}
    table = evaluate([Claim(id="next", **bare)])
    made = blocks(table, other_readings())
    begin, end = "<!-- claims:begin -->", "<!-- claims:end -->"
    text = with_blocks(f"before\n{begin}\nold\n{end}\nafter", made)
    assert text.startswith("before\n") and text.endswith("\nafter") and "old" not in text
    assert markdown(table) in text
    assert with_blocks("no markers", made) == "no markers"
    with pytest.raises(ValueError, match="has no <!-- claims:end -->"):
        with_blocks(begin, made)


def test_the_committed_table_and_the_documents_say_what_the_results_say(capsys):
    assert claims.main(["--check"]) == 0, capsys.readouterr().out


@pytest.fixture
def root(tmp_path, monkeypatch):
    """A folder with the claims and documents, and no results yet."""
    for name in ("claims.yaml", *claims.DOCUMENTS):
        (tmp_path / name).write_bytes((paths.ROOT / name).read_bytes())
    monkeypatch.setattr(paths, "ROOT", tmp_path)
    monkeypatch.setattr(paths, "RESULTS", tmp_path / "results")
    monkeypatch.setattr(paths, "COMMITTED", tmp_path / "results")
    return tmp_path


def documents(root):
    return {name: (root / name).read_bytes() for name in claims.DOCUMENTS}


def test_a_document_out_of_step_is_noticed(root, capsys):
    before = documents(root)
    assert claims.main([]) == 0 == claims.main(["--check"])
    assert documents(root) != before  # nothing has been run there
    (root / "README.md").write_bytes(before["README.md"])
    assert claims.main(["--check"]) == 1
    assert "results: README.md; run `make claims`" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("claims.yaml", "- id: [1,"),
        ("claims.yaml", "claims:\n- id: alone"),
        ("README.md", "<!-- nobody:begin -->"),
        ("results/04_scheduler_comparison/claims.csv", "key,value\n"),
    ],
)
def test_what_is_wrong_is_one_line_and_ends_with_2(root, capsys, file, content):
    (root / file).parent.mkdir(parents=True, exist_ok=True)
    (root / file).write_text(content)
    assert claims.main([]) == 2
    told = capsys.readouterr().err
    assert told.startswith("mllm-sched claims: ") and told.count("\n") == 1
    assert not (root / "results" / "claims.csv").exists()


def test_results_of_other_parameters_are_shown_but_never_written(root, monkeypatch, capsys):
    before = documents(root)
    monkeypatch.setattr(paths, "RESULTS", root / "build" / "results")
    assert claims.main([]) == 2
    assert "documents tell those on" in capsys.readouterr().err
    assert claims.main(["--print"]) == 0
    assert documents(root) == before


def test_every_judged_claim_was_read_otherwise_but_for_measured_facts_and_plans():
    plans = {"feedback", "many-users"}  # of the paper, which could not be read otherwise
    judged = {each.id for each in load_claims() if each.tests and each.evidence != "measured"}
    readings = other_readings()
    assert set(readings["id"]) == judged - plans
    assert {"latency", "power-levels", "latency-limits", "time-varying", "savings-year"} <= set(
        readings.loc[readings["reading"] == "other seeds", "id"]
    )
