"""Adapters of other libraries keep to one interface; the runner compares like with like."""

import sys

import numpy as np
import pytest

from mllm_sched import paths
from mllm_sched.experiments.random_tables import FAMILIES

sys.path.insert(0, str(paths.ROOT / "benchmarks"))
against_peers = pytest.importorskip("against_peers")
import peers  # noqa: E402
import peers_plots  # noqa: E402

TABLE = FAMILIES["queueing"](0, 48)
TRUSTED = [arm.index for arm in TABLE.trusted]
RULES = ["adaptive-safe-gp", "ucb + penalty", "river UCB + penalty"]


def made(name, trusted=TRUSTED):
    known = peers.peers()[name]
    if why := known.missing():
        pytest.skip(why)
    return known(TABLE.space, TABLE.limit_s, trusted, 0)


def run(peer, tasks):
    noise = np.exp(0.01 * np.random.default_rng(0).standard_normal((tasks, 2)))
    chosen = []
    for energy, latency in noise:
        chosen.append(peer.ask())
        arm = chosen[-1]
        peer.tell(arm, TABLE.energy_j[arm] * energy, TABLE.latency_s[arm] * latency)
    return chosen


@pytest.mark.parametrize("name", peers.peers())
def test_every_peer_chooses_by_seed_and_trusted_arms_first(name):
    peer = made(name)
    chosen = run(peer, len(TRUSTED) + 3)
    assert all(type(arm) is int and 0 <= arm < len(TABLE.space) for arm in chosen)
    assert chosen == run(made(name), len(TRUSTED) + 3)
    if peer.seeded:
        assert chosen[: len(TRUSTED)] == TRUSTED


@pytest.mark.parametrize("name", peers.peers())
def test_a_trusted_arm_beyond_the_limit_stops_nobody(name):
    slowest = int(TABLE.latency_s.argmax())
    assert len(run(made(name, [slowest]), 4)) == 4


def test_gpytorch_plays_the_rule_of_safe_gp_ucb():
    """With one trusted arm nothing differs: not the model, not the rule, so not the choices."""
    theirs = run(made("GPyTorch GP, safe rule, fixed", TRUSTED[:1]), 25)
    assert theirs == run(made("safe-gp-ucb", TRUSTED[:1]), 25)


def test_a_penalty_is_the_reward_where_there_is_no_limit():
    peer = made("river UCB + penalty")
    peer.tell(0, 1.0, TABLE.limit_s / 2)
    assert peer.reward() == 0.0
    peer.tell(0, 1.0, TABLE.limit_s * 2)
    assert peer.reward() == -1.0


def test_the_runner_compares_like_with_like():
    listed = against_peers.games(RULES, tables=2, tasks=12)
    played = {game: against_peers.play(game) for game in listed}
    table = against_peers.summary(played, 2, 12)
    assert set(table["rule"]) == set(RULES)
    assert len(table) == len(RULES) * len(against_peers.CASES) * len(against_peers.NOISES)
    assert (table["tables"] == 2).all() and (table["tasks"] == 12).all()
    assert (table["ahead"][table["rule"] == against_peers.OURS[0]] == "").all()
    assert peers_plots.quality(table).axes


def test_every_library_that_is_compared_is_pinned_or_in_the_lock():
    pinned = "".join(
        (paths.ROOT / name).read_text()
        for name in ("requirements.lock", "benchmarks/requirements.txt")
    )
    for package in against_peers.PACKAGES.values():
        assert f"\n{package.lower()}==" in pinned.lower(), package
