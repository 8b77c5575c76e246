from dataclasses import replace

import numpy as np
import pytest

from mllm_sched import paths
from mllm_sched.arms import ArmSpace
from mllm_sched.devices import KnownDevice, open_device
from mllm_sched.devices.simulated import SimulatedOrin
from mllm_sched.experiments import comparison
from mllm_sched.experiments.claims import load_claims
from mllm_sched.experiments.comparison import OURS, compare, compare_live, compare_replay
from mllm_sched.experiments.lineup import full_power_arms, paper_lineup
from mllm_sched.experiments.runner import RunStopped
from mllm_sched.tasks import Task

TASK = Task("image", "clip-vit-l14-336")
SPACE = ArmSpace.agx_orin()
LABELS = [rule.label for rule in paper_lineup()]
COMMON = {"steps": 12, "limit_s": 0.2, "trusted": full_power_arms(SPACE)}
TRACE = str(paths.PUBLISHED / "orin_sweep_trace.csv")


class Live:
    """A board whose truth nobody knows."""

    name, evidence, energy_evidence = "bench", "measured", "estimated"

    def __init__(self):
        self.board = open_device("agx-orin-sim")
        self.space = self.board.space
        self.modalities = {TASK.encoder: TASK.modality}

    def run(self, arm, task):
        return self.board.run(arm, task)

    def close(self):
        self.board.close()


@pytest.fixture(scope="module")
def played():
    return compare("agx-orin-sim", TASK, paper_lineup(), seeds=2, **COMMON)


@pytest.fixture(scope="module")
def live():
    return compare_live(Live(), TASK, **COMMON)


def test_everyone_plays_every_task_with_every_seed(played):
    counts = played.table.groupby("scheduler", observed=True).size()
    assert counts.to_dict() == dict.fromkeys(LABELS, 2 * 12)
    assert played.evidence == "simulated" and played.limits == {"latency_s": 0.2}


def test_the_overview_has_the_mean_over_seeds_of_everyone(played):
    overview = played.overview()
    assert overview.index.tolist() == LABELS and list(overview.columns) == comparison.SHOWN
    runs = played.runs[played.runs["scheduler"] == "Random"]
    assert overview.loc["Random", "energy_j"] == pytest.approx(runs["energy_j"].mean())
    assert overview.loc["Oracle", "energy_over_oracle"] == 1
    assert overview.loc["Fixed at full power", "switches"] == 0


@pytest.mark.parametrize("quantity", ["energy", "latency"])
@pytest.mark.parametrize(("late", "start"), [("", 0), (" late", 6)])
def test_savings_compare_ours_with_everyone_else(played, quantity, late, start):
    savings = played.savings[played.savings["what"] == quantity + late].set_index("scheduler")
    assert set(savings.index) == set(LABELS) - {OURS}
    tasks = played.table[played.table["step"] >= start].groupby(["seed", "scheduler"])
    means = tasks[{"energy": "energy_j", "latency": "latency_s"}[quantity]].mean().unstack()
    for other in savings.index:
        wanted = (1 - means[OURS] / means[other]).mean()
        assert savings.loc[other, "value"] == pytest.approx(wanted, abs=1e-12)


def test_every_number_has_one_key_and_its_evidence(played):
    numbers = played.numbers()
    assert numbers["key"].is_unique and set(numbers["evidence"]) == {"simulated"}
    numbers = numbers.set_index("key")
    assert numbers.loc["violations of Oracle", "value"] == 0
    assert numbers.loc["violations of Random", "value"] > 0
    saved = played.savings.set_index(["what", "scheduler"])["value"]
    assert numbers.loc["latency vs Random", "value"] == saved["latency", "Random"]


def test_a_replay_plays_every_encoder_of_the_trace():
    runs, evidence = compare_replay(TRACE, steps=8, seeds=1)
    assert evidence == "published"
    assert set(runs["encoder"]) == set(open_device(f"trace:{TRACE}").encoders)
    assert (runs.groupby("encoder").size() == len(LABELS)).all()
    # Half of the arms are within the limit: the oracle always, random not always.
    shares = runs.groupby("scheduler", observed=True)["violations"].mean()
    assert shares["Oracle"] == 0 and 0.2 < shares["Random"] < 0.8


def test_a_live_device_has_no_oracle_and_says_what_its_numbers_are(live):
    assert not isinstance(Live(), KnownDevice)
    assert live.overview().index.tolist() == [label for label in LABELS if label != "Oracle"]
    assert live.evidence == "latency measured, energy estimated"


def test_what_is_measured_on_an_arm_stands_in_for_its_truth(live):
    table = live.table
    for name in ("energy_j", "latency_s"):
        pooled = table.groupby("arm")[name].transform("mean")
        assert np.allclose(table[f"true_{name}"], pooled, rtol=1e-12)
    within = table.loc[table["true_latency_s"] <= 0.2, "true_energy_j"]
    assert set(table["oracle_energy_j"]) == {within.min()}
    assert table["true_energy_j"].nunique() > 5


def test_a_comparison_of_a_live_device_has_numbers_too(live):
    numbers = live.numbers().set_index("key")
    assert 0 < numbers.loc["violations of Random", "value"] < 1
    assert numbers.loc["energy vs Random", "value"] > 0


def test_a_live_device_that_breaks_leaves_what_all_schedulers_did():
    device = Live()
    device.run = iter_of_runs(device.board, COMMON["steps"] + 3)
    with pytest.raises(RunStopped, match="stopped after 3 tasks: unplugged") as caught:
        compare_live(device, TASK, **COMMON)
    assert caught.value.table.groupby("scheduler").size().tolist() == [COMMON["steps"], 3]


def iter_of_runs(board, allowed):
    """A ``run`` that works so many times."""
    left = iter(range(allowed))

    def run(arm, task):
        if next(left, None) is None:
            raise OSError("unplugged")
        return board.run(arm, task)

    return run


def test_every_variant_has_its_own_label_and_differs_from_the_main_comparison():
    chosen = comparison.variants()
    assert len({variant.label for variant in chosen}) == len(chosen)
    assert len({repr(replace(variant, label="")) for variant in chosen}) == len(chosen)


def test_a_variant_gives_the_numbers_that_the_claims_ask_for():
    base = comparison.variants(steps=10)[0]
    table = comparison.numbers(base, seeds=2)
    asked = [claim for claim in load_claims() if claim.notebook == "04_scheduler_comparison"]
    assert len(asked) == 4 and table["key"].is_unique and set(table["n"]) == {2}
    for claim in asked:
        assert {test.key for test in claim.tests} <= set(table["key"])


def test_a_variant_changes_who_stands_as_a_baseline():
    device = SimulatedOrin()
    chosen = {variant.label: variant.rules(device) for variant in comparison.variants()}
    ours, ucb, greedy = chosen["as it is"]
    assert (ours.label, ucb.name, greedy.settings) == ("Safe GP-UCB", "ucb", {"epsilon": 0.1})
    assert [r.settings["penalty"] for r in chosen["baselines with a penalty"][1:]] == [1.0, 1.0]
    gp = chosen["UCB on a Gaussian process"][1]
    assert (
        gp.label == "UCB" and gp.name == "safe-gp-ucb" and gp.settings["limits"]["latency_s"] > 1e5
    )
    assert gp.settings["hyperparameters"] == ours.settings["hyperparameters"]
    assert chosen["default hyperparameters"][0].settings == {}


def test_without_the_cpu_no_arm_of_it_is_played():
    base = comparison.variants(steps=60)[0]
    played = comparison.play(comparison.without_cpu(base), 1)
    space = ArmSpace.agx_orin(("gpu", "dla"))
    assert played.table["arm"].max() < len(space)
