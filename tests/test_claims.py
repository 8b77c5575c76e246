from pathlib import Path

import pandas as pd
import pytest

from mllm_sched import paths
from mllm_sched.experiments import claims
from mllm_sched.experiments.claims import (
    VERDICTS,
    Claim,
    Condition,
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


@pytest.fixture
def results(tmp_path, monkeypatch):
    monkeypatch.setattr(paths, "RESULTS", tmp_path)
    monkeypatch.setattr(paths, "COMMITTED", tmp_path)
    (tmp_path / "04").mkdir()
    return tmp_path / "04" / "claims.csv"


def write_numbers(file, whole, late):
    rows = [("saving, whole", *whole, 10, "simulated"), ("saving, late", *late, 10, "simulated")]
    columns = ["key", "value", "low", "high", "n", "evidence"]
    pd.DataFrame(rows, columns=columns).to_csv(file, index=False)


def claim(**changes):
    tests = (Condition("saving, whole"), Condition("saving, late"))
    settings = {"notebook": "04", "show": "saving, whole", "tests": tests, "reasons": REASONS}
    settings |= {"value": 0.2, "direction": "at least", "tolerance": 0.2}
    settings |= {"unit": "percent", "evidence": "simulated"}
    return Claim("saving", "It saves", "20 %", "saving of energy", **{**settings, **changes})


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
        Claim("board", "On the board", "yes", "speed", untestable="Needs a board."),
        Claim("next", "Soon", "yes", "speed", not_run="Not built yet."),
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


JUDGED = (
    "id: a, claim: b, paper: c, metric: m, notebook: n, show: k, tests: [{key: k}], "
    "unit: ratio, direction: at least, value: 1, tolerance: 0, evidence: simulated"
)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("- {id: a, claim: b, paper: c, colour: red}", r"'a': unknown \['colour'\]"),
        ("- {id: a, claim: b, paper: c, metric: m}", "'a': give notebook, show and tests"),
        ("- {id: a, claim: b, paper: c}", "'a': .*metric"),
        (f"- {{{JUDGED}}}", "'a': no reason for"),
        (f"- {{{JUDGED}}}".replace("unit: ratio", "unit: miles"), "'a': unit 'miles': expected"),
        (f"- {{{JUDGED}}}".replace("simulated", "felt"), "'a': evidence 'felt': expected one of"),
        (f"- {{{JUDGED}}}".replace("at least", "beyond"), "'a': direction 'beyond': expected"),
        (f"- {{{JUDGED}}}".replace("tolerance: 0", "tolerance: -1"), "'a': give value, and a tol"),
        (
            "- {id: a, claim: b, paper: c, metric: m, not_run: d}\n"
            "- {id: a, claim: b, paper: c, metric: m, not_run: d}",
            "'a' is given twice",
        ),
    ],
)
def test_a_wrong_claim_is_named(tmp_path, text, message):
    file = tmp_path / "claims.yaml"
    file.write_text("claims:\n" + "\n".join(f"  {line}" for line in text.splitlines()))
    with pytest.raises(ValueError, match=message):
        load_claims(file)


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
        write_numbers(results, (number,) * 3, (number,) * 3)
        assert evaluate([claim(**asked)])["verdict"].tolist() == [verdict]


def test_a_test_may_have_bounds_of_its_own(results):
    write_numbers(results, (0.3,) * 3, (0.01,) * 3)
    tests = (Condition("saving, whole"), Condition("saving, late", at_least=0.0))
    assert evaluate([claim(tests=tests)])["verdict"].tolist() == ["reproduced"]


def test_a_number_of_another_kind_than_was_said_is_refused(results):
    write_numbers(results, (0.3,) * 3, (0.3,) * 3)
    with pytest.raises(
        ValueError, match=r"'saving': 'saving, whole' is simulated, but .* says measured"
    ):
        evaluate([claim(evidence="measured")])


def test_results_of_other_parameters_may_be_of_other_evidence(results, monkeypatch):
    """As with `make reproduce DEVICE=trace:my.csv`."""
    write_numbers(results, (0.3, 0.2, 0.4), (0.3, 0.2, 0.4))
    monkeypatch.setattr(paths, "COMMITTED", results.parent)
    (row,) = evaluate([claim(evidence="measured")]).to_dict("records")
    assert row["evidence"] == "simulated"


def test_a_number_that_is_none_is_refused_and_not_judged(results):
    nothing = float("nan")
    write_numbers(results, (nothing,) * 3, (0.3,) * 3)
    with pytest.raises(ValueError, match="'saving': 'saving, whole' is nan"):
        evaluate([claim()])


def test_a_reason_may_list_the_conditions_that_do_not_hold(results):
    write_numbers(results, (0.3,) * 3, (0.1,) * 3)
    reasons = {**REASONS, "partly": "But {failed}."}
    assert evaluate([claim(reasons=reasons)]).iloc[0]["reason"] == "But saving, late is 10.0 %."


def test_a_reason_may_print_a_number_in_another_unit(results):
    write_numbers(results, (0.3,) * 3, (0.2,) * 3)
    reasons = {**REASONS, "reproduced": "{saving, late|ratio} of it"}
    assert evaluate([claim(reasons=reasons)]).iloc[0]["reason"] == "0.200 of it"


def test_a_row_says_how_many_other_readings_agree(results):
    write_numbers(results, (0.3,) * 3, (0.3,) * 3)
    write_readings(
        results,
        ("saving", "other seeds", "reproduced"),
        ("saving", "limit 0.1 s", "partly"),
        ("another", "limit 0.1 s", "partly"),
    )
    table = evaluate([claim()])
    assert table.iloc[0]["readings"] == "1 of 2"
    assert "**partly**: limit 0.1 s" in by_reading(table, other_readings())


def test_a_row_says_if_its_verdict_changes_with_the_seeds(results):
    write_numbers(results, (0.3,) * 3, (0.3,) * 3)
    write_readings(results, ("saving", "other seeds", "partly"))
    assert evaluate([claim()]).iloc[0]["readings"] == "0 of 1; changes with the seeds"


def test_a_document_keeps_everything_around_its_generated_parts():
    table = evaluate([Claim("next", "Soon", "yes", "speed", not_run="Not built yet.")])
    begin, end = "<!-- claims:begin -->", "<!-- claims:end -->"
    text = with_blocks(f"before\n{begin}\nold\n{end}\nafter", blocks(table, other_readings()))
    assert text.startswith("before\n") and text.endswith("\nafter") and "old" not in text
    assert markdown(table) in text
    assert with_blocks("no markers", blocks(table, other_readings())) == "no markers"
    with pytest.raises(ValueError, match=r"no generated part 'prices'; there are .*claims"):
        with_blocks("<!-- prices:begin -->", blocks(table, other_readings()))
    with pytest.raises(ValueError, match="has no <!-- claims:end -->"):
        with_blocks(begin, blocks(table, other_readings()))


def test_the_documents_have_the_parts_that_are_generated():
    readme, report = ((paths.ROOT / name).read_text() for name in claims.DOCUMENTS)
    assert "<!-- claims:begin -->" in readme
    for name in ("verdicts", "criteria", "readings"):
        assert f"<!-- {name}:begin -->" in report


def test_the_committed_table_and_the_documents_say_what_the_results_say(capsys):
    assert claims.main(["--check"]) == 0, capsys.readouterr().out


def test_a_document_out_of_step_is_noticed(tmp_path, monkeypatch):
    table = evaluate()
    for name in (*claims.DOCUMENTS, "claims.yaml"):
        (tmp_path / name).write_text(Path(paths.ROOT / name).read_text())
    monkeypatch.setattr(paths, "ROOT", tmp_path)
    assert claims.in_step(table)
    table.loc[0, "verdict"] = "reproduced, honestly"
    assert not claims.in_step(table)


def test_every_claim_of_the_paper_has_a_row_and_a_reason():
    table = evaluate()
    assert set(table["verdict"]) <= set(VERDICTS)
    assert (table["reason"] != "").all()
    wanted = {"energy-ucb", "energy-epsilon-greedy", "latency", "safety", "time-varying"}
    wanted |= {"power-levels", "latency-limits", "non-monotone", "dla-per-watt"}
    wanted |= {"pair-absolute", "pair-latency", "pair-energy"}
    wanted |= {"strategies", "transmission", "encoding", "llm-on-server", "features-only"}
    wanted |= {"savings-year", "feedback", "many-users"}
    assert wanted <= set(table["id"])
