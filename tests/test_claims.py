from pathlib import Path

import pandas as pd
import pytest

from mllm_sched import paths
from mllm_sched.study import claims
from mllm_sched.study.claims import Claim, Condition, evaluate, load_claims, markdown, readme_with

REASONS = {
    "reproduced": "It is {saving, late}.",
    "partly": "Only over the whole run.",
    "not reproduced": "No: {saving, whole}.",
}


@pytest.fixture
def results(tmp_path, monkeypatch):
    monkeypatch.setattr(paths, "RESULTS", tmp_path)
    (tmp_path / "04").mkdir()
    return tmp_path / "04" / "claims.csv"


def write_numbers(file, whole, late):
    rows = [("saving, whole", *whole, 10, "simulated"), ("saving, late", *late, 10, "simulated")]
    columns = ["key", "value", "low", "high", "n", "evidence"]
    pd.DataFrame(rows, columns=columns).to_csv(file, index=False)


def claim(**changes):
    tests = (Condition("saving, whole", at_least=0.16), Condition("saving, late", at_least=0.16))
    settings = {"notebook": "04", "show": "saving, whole", "tests": tests, "reasons": REASONS}
    return Claim("saving", "It saves", "20 %", **{**settings, **changes})


@pytest.mark.parametrize(
    ("whole", "late", "verdict"),
    [
        ((0.30, 0.25, 0.35), (0.20, 0.18, 0.22), "reproduced"),
        ((0.30, 0.25, 0.35), (0.17, 0.15, 0.19), "partly"),
        ((0.17, 0.15, 0.19), (0.20, 0.18, 0.22), "not reproduced"),
    ],
)
def test_a_verdict_needs_the_whole_interval_within_the_bounds(results, whole, late, verdict):
    write_numbers(results, whole, late)
    assert evaluate([claim()])["verdict"].tolist() == [verdict]


def test_a_number_without_an_interval_is_judged_by_its_value(results):
    nothing = float("nan")
    write_numbers(results, (0.30, nothing, nothing), (0.20, nothing, nothing))
    row = evaluate([claim()]).iloc[0]
    assert row["verdict"] == "reproduced" and row["ours"] == "30.0 %"


def test_the_row_shows_the_number_its_interval_and_the_reason_filled_in(results):
    write_numbers(results, (0.30, 0.25, 0.35), (0.20, 0.18, 0.22))
    row = evaluate([claim()]).iloc[0]
    assert row["ours"] == "30.0 % [25.0, 35.0]" and row["n"] == 10
    assert row["evidence"] == "simulated"
    assert row["reason"] == "It is 20.0 %."
    assert row["command"] == "make reproduce NOTEBOOKS=04"


def test_claims_without_a_number_say_why(results):
    rows = [
        claim(),
        Claim("board", "On the board", "yes", untestable="Needs a board."),
        Claim("next", "Soon", "yes", not_run="Not built yet."),
    ]
    table = evaluate(rows)
    assert table["verdict"].tolist() == ["not run", "not testable here", "not run"]
    assert table["reason"].tolist()[1:] == ["Needs a board.", "Not built yet."]


def test_a_number_that_the_notebook_did_not_write_is_named(results):
    write_numbers(results, (0.3, 0.3, 0.3), (0.3, 0.3, 0.3))
    with pytest.raises(ValueError, match=r"'saving': claims\.csv of 04 lacks .'cost'"):
        evaluate([claim(show="cost")])
    reasons = {**REASONS, "reproduced": "It is {speed}."}
    with pytest.raises(ValueError, match="no number 'speed' in 04"):
        evaluate([claim(reasons=reasons)])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("- {id: a, claim: b, paper: c, colour: red}", r"'a': unknown \['colour'\]"),
        ("- {id: a, claim: b, paper: c}", "'a': give notebook, show and tests"),
        ("- {id: a, claim: b}", "'a': .*paper"),
        (
            "- {id: a, claim: b, paper: c, notebook: n, show: k, tests: [{key: k}]}",
            "'a': no reason for",
        ),
        (
            "- {id: a, claim: b, paper: c, not_run: d}\n- {id: a, claim: b, paper: c, not_run: d}",
            "'a' is given twice",
        ),
    ],
)
def test_a_wrong_claim_is_named(tmp_path, text, message):
    file = tmp_path / "claims.yaml"
    file.write_text("claims:\n" + "\n".join(f"  {line}" for line in text.splitlines()))
    with pytest.raises(ValueError, match=message):
        load_claims(file)


def test_the_readme_keeps_everything_around_the_table():
    table = evaluate([Claim("next", "Soon", "yes", not_run="Not built yet.")])
    text = readme_with(f"before\n{claims.BEGIN}\nold\n{claims.END}\nafter", table)
    assert text.startswith("before\n") and text.endswith("\nafter") and "old" not in text
    assert markdown(table) in text
    with pytest.raises(ValueError, match=r"no .*claims:begin"):
        readme_with("no markers", table)


def test_the_committed_table_and_the_readme_say_what_the_results_say(capsys):
    assert claims.main(["--check"]) == 0, capsys.readouterr().out


def test_a_readme_out_of_step_is_noticed(tmp_path, monkeypatch):
    table = evaluate()
    for name in ("README.md", "claims.yaml"):
        (tmp_path / name).write_text(Path(paths.ROOT / name).read_text())
    monkeypatch.setattr(paths, "ROOT", tmp_path)
    assert claims.in_step(table)
    table.loc[0, "verdict"] = "reproduced, honestly"
    assert not claims.in_step(table)


def test_every_claim_of_the_paper_has_a_row_and_a_reason():
    table = evaluate()
    assert set(table["verdict"]) <= set(claims.VERDICTS)
    assert (table["reason"] != "").all()
    wanted = {"energy-ucb", "energy-epsilon-greedy", "latency", "non-monotone", "dla-per-watt"}
    assert wanted | {"power-levels", "latency-limits", "strategies"} <= set(table["id"])
