import pickle

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mllm_sched.arms import Arm, ArmSpace, Factor


def test_agx_orin_has_the_papers_sixty_arms():
    space = ArmSpace.agx_orin()
    assert len(space) == 60
    assert {arm.component for arm in space} == {"gpu", "cpu", "dla"}
    assert {arm.power_w for arm in space} == {15, 30, 50, 60}
    assert {arm.load for arm in space} == {0.2, 0.4, 0.6, 0.8, 1.0}
    assert space.factor("power_w").labels[-1] == "MAX"


@given(st.integers(min_value=0, max_value=59))
def test_an_arm_is_found_by_its_levels(index):
    space = ArmSpace.agx_orin()
    arm = space[index]
    assert arm.index == index == space.index(arm) == space.arm(**arm.levels).index


@given(st.lists(st.integers(1, 4), min_size=1, max_size=4))
def test_a_space_is_every_combination_once(sizes):
    factors = [Factor(f"f{i}", list(range(size))) for i, size in enumerate(sizes)]
    space = ArmSpace(factors)
    assert len(space) == np.prod(sizes) == len(set(space))
    assert space.features().shape == (len(space), len(sizes))


def test_features_are_codes_for_names_and_positions_for_numbers():
    space = ArmSpace(
        [Factor("component", ["gpu", "cpu"]), Factor("power_w", [15, 30, 60], log=True)]
    )
    expected = [[0, 0], [0, 0.5], [0, 1], [1, 0], [1, 0.5], [1, 1]]
    np.testing.assert_allclose(space.features(), expected, atol=1e-15)
    assert space.features().dtype == np.float64
    with pytest.raises(ValueError, match="read-only"):
        space.features()[0, 0] = 1.0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"component": "tpu"}, r"component='tpu'.*'gpu', 'cpu', 'dla'"),
        ({"fan": "on"}, r"'fan'.*component, power_w, load"),
    ],
)
def test_an_unknown_or_missing_factor_or_level_is_named(change, message):
    space, levels = ArmSpace.agx_orin(), {"component": "gpu", "power_w": 15, "load": 0.2}
    with pytest.raises(ValueError, match=message):
        space.arm(**levels | change)
    with pytest.raises(ValueError, match="no level given for load"):
        space.arm(component="gpu", power_w=15)
    with pytest.raises(ValueError, match="unknown factor 'threads'"):
        space.index(Arm(0, {"threads": 2}))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("power w", [1]), "identifier"),
        (("a", []), "no levels"),
        (("a", ["x", 1]), "mix"),
        (("a", ["x", "x"]), "twice"),
        (("a", [2, 1]), "rise"),
        (("a", [1, float("inf")]), "finite"),
        (("a", [0, 1], True), "above 0"),
        (("a", [0, 1], False, ["zero"]), "1 labels for 2 levels"),
    ],
)
def test_a_bad_factor_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        Factor(*arguments)


def test_two_factors_may_not_share_a_name():
    with pytest.raises(ValueError, match="share a name"):
        ArmSpace([Factor("a", [1]), Factor("a", [2])])
    with pytest.raises(ValueError, match="at least one factor"):
        ArmSpace([])


def test_arms_survive_the_way_to_another_process():
    arm = ArmSpace.agx_orin()[7]
    copy = pickle.loads(pickle.dumps(arm))
    assert copy == arm and copy.load == arm.load and hash(copy) == hash(arm)


def test_an_arm_without_a_factor_says_which_it_has():
    with pytest.raises(AttributeError, match=r"'fan'.*component"):
        _ = ArmSpace.agx_orin()[0].fan
