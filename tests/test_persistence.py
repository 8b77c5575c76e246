"""Schedulers in files: the same decisions to the last bit, and bad files refused."""

import numpy as np
import pytest
from safetensors.numpy import load as from_bytes
from safetensors.numpy import save as to_bytes
from small_board import ENERGY_J, FAST, LATENCY_S, SPACE

from mllm_sched.arms import Factor
from mllm_sched.schedulers import Hyperparameters, Scheduler, make_scheduler, scheduler_names
from mllm_sched.schedulers.bandits import UCB
from mllm_sched.schedulers.persistence import StateError, metadata
from mllm_sched.schedulers.safe_gp_ucb import SafeGPUCB

CONTEXTS = [Factor("background_load", [0.0, 0.4])]

every_scheduler = pytest.mark.parametrize("name", scheduler_names())


def make(name, **changes):
    arguments = {"limits": {"latency_s": 0.2}, "seeds": [FAST], "rng": 3, "contexts": CONTEXTS}
    if name == "oracle":
        arguments["truth"] = {"energy_j": np.tile(ENERGY_J, 2), "latency_s": np.tile(LATENCY_S, 2)}
    if name in ("safe-gp-ucb", "config"):
        arguments["hyperparameters"] = {"latency_s": Hyperparameters(1, 0.01, (0.9, 0.5, 1, 1))}
        arguments["forget_rate"] = 0.002
    return make_scheduler(name, SPACE, **{**arguments, **changes})


def play(scheduler, tasks, start=0):
    """Decisions as text, bounds and all, while three others are always running."""
    said, running = [], [scheduler.ask({"background_load": 0.0}) for _ in range(3)]
    for task in range(start, start + tasks):
        load = CONTEXTS[0].levels[task % 2]
        running.append(scheduler.ask({"background_load": load}))
        said.append(repr(running[-1]))
        done = running.pop(0)
        noise = np.exp(0.02 * np.random.default_rng(task).standard_normal(2))
        latency_s = LATENCY_S[done.arm.index] / (1 - load) * noise[0]
        if task % 37 == 5:
            scheduler.tell(done.id, failed="out of memory")
        elif task % 41 == 7:
            scheduler.tell(done.id, above={"latency_s": latency_s})
        else:
            energy_j = ENERGY_J[done.arm.index] * noise[0] * noise[1]
            scheduler.tell(done.id, latency_s=latency_s, energy_j=energy_j)
    for decision in running:
        scheduler.cancel(decision.id)
    return said


@every_scheduler
def test_a_loaded_scheduler_goes_on_to_the_last_bit(name, tmp_path):
    scheduler = make(name)
    play(scheduler, 150)
    waiting = scheduler.ask({"background_load": 0.4})
    scheduler.save(tmp_path / "state")
    loaded = Scheduler.load(tmp_path / "state")
    assert type(loaded) is type(scheduler)
    for one in (scheduler, loaded):  # decisions that were open can still be told
        one.tell(waiting.id, energy_j=2.0, latency_s=0.1)
    assert play(loaded, 150, start=150) == play(scheduler, 150, start=150)


@every_scheduler
def test_everything_that_changes_is_part_of_the_state(name):
    """So that a rule cannot be given a memory that its files do not hold."""
    fresh, played = make(name), make(name)
    play(played, 60)
    kept = {*type(played).state_names(), "_log_limits"}  # that one follows from the limits
    for attribute, value in vars(fresh).items():
        if attribute not in kept:
            assert repr(vars(played)[attribute]) == repr(value), attribute


def test_limits_that_were_changed_are_kept(tmp_path):
    scheduler = make("safe-gp-ucb")
    scheduler.change_limits({"latency_s": 0.15})
    assert SafeGPUCB.load(scheduler.save(tmp_path / "state")).limits == {"latency_s": 0.15}


@pytest.fixture
def saved(tmp_path):
    scheduler = make("ucb")
    play(scheduler, 70)
    return scheduler.save(tmp_path / "state")


def test_truncated_files_and_any_edited_byte_are_refused(saved):
    data = saved.read_bytes()
    for share in (0.0, 0.01, 0.5, 0.9, 0.999):
        with pytest.raises(StateError, match="truncated, or no scheduler"):
            Scheduler.from_bytes(data[: int(share * len(data))])
    for place in np.random.default_rng(0).integers(0, len(data), 300):
        edited = bytearray(data)
        edited[place] ^= 1 << int(place % 8)
        with pytest.raises(StateError, match=r"edited|truncated|version|no scheduler"):
            Scheduler.from_bytes(bytes(edited))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ({"version": "2"}, r"version '2'; this package reads 1"),
        ({"format": "something"}, "no scheduler, but 'something'"),
        ({"sha256": "0" * 64}, "edited or damaged"),
    ],
)
def test_files_of_other_kinds_are_named(saved, words, message):
    data = saved.read_bytes()
    with pytest.raises(StateError, match=message):
        Scheduler.from_bytes(to_bytes(from_bytes(data), metadata={**metadata(data), **words}))


def test_the_wrong_rule_and_a_missing_file_are_named(saved, tmp_path):
    with pytest.raises(StateError, match="holds the scheduler 'ucb', not 'safe-gp-ucb'"):
        SafeGPUCB.load(saved)
    with pytest.raises(StateError, match="cannot be read: No such file"):
        Scheduler.load(tmp_path / "nothing")


@pytest.mark.parametrize("header", [b"[1]", b'{"__metadata__":null}', b'{"__metadata__":[]}'])
def test_a_header_of_another_form_is_refused(header):
    with pytest.raises(StateError, match="truncated, or no scheduler"):
        Scheduler.from_bytes(len(header).to_bytes(8, "little") + header)


def test_an_interrupted_save_leaves_the_old_file(saved, monkeypatch):
    before = saved.read_bytes()
    scheduler = Scheduler.load(saved)
    monkeypatch.setattr("os.fsync", lambda file: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        scheduler.save(saved)
    assert saved.read_bytes() == before
    assert [path.name for path in saved.parent.iterdir()] == ["state"]


def test_what_no_file_can_hold_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"made\.settings\.truth: a function cannot be saved"):
        make("oracle", truth=lambda: {}).save(tmp_path / "state")
    assert not (tmp_path / "state").exists()


@pytest.mark.parametrize("bits", [np.random.MT19937, np.random.SFC64, np.random.Philox])
def test_any_generator_of_numpy_is_kept(bits, tmp_path):
    scheduler = make("thompson", rng=np.random.Generator(bits(5)))
    play(scheduler, 70)
    loaded = Scheduler.load(scheduler.save(tmp_path / "state"))
    assert play(loaded, 40) == play(scheduler, 40)


def test_a_scheduler_that_is_in_no_registry_is_not_loaded():
    class Mine(UCB):
        name = "mine"

    mine = Mine(SPACE, limits={"latency_s": 0.2})
    with pytest.raises(StateError, match="holds the unknown scheduler 'mine'"):
        Scheduler.from_bytes(mine.to_bytes())
