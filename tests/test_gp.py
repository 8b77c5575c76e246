import gpytorch
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import norm

from mllm_sched.arms import ArmSpace
from mllm_sched.schedulers.gp import FinitePosterior, Hyperparameters, covariance
from mllm_sched.schedulers.hyperparameter_fit import ArmGP, ArmKernel, fit_hyperparameters

SPACE = ArmSpace.agx_orin()
VALUES = Hyperparameters(0.7, 0.02, (0.4, 0.8, 1.5))


@given(st.integers(0, 2**32 - 1), st.integers(1, 80))
@settings(max_examples=15)
def test_the_recursion_equals_gpytorch_to_1e_10(seed, count):
    rng = np.random.default_rng(seed)
    cells, values = rng.integers(0, 60, count), rng.normal(1.0, 1.0, count)
    belief = FinitePosterior(0.3, covariance(SPACE, VALUES), VALUES.noise_variance)
    for cell, value in zip(cells, values, strict=True):
        belief.tell(cell, value)

    model = ArmGP(SPACE, SPACE.features()[cells], values, VALUES, mean=0.3).eval()
    with torch.no_grad(), gpytorch.settings.fast_pred_var(False):
        exact = model(torch.as_tensor(SPACE.features().copy()))
        np.testing.assert_allclose(belief.mean, exact.mean, atol=1e-10)
        np.testing.assert_allclose(belief.covariance, exact.covariance_matrix, atol=1e-10)


def test_forgetting_everything_returns_the_prior_and_nothing_leaves_it():
    belief = FinitePosterior(0.5, covariance(SPACE, VALUES), VALUES.noise_variance)
    belief.tell(3, 2.0)
    mean, cov = belief.mean.copy(), belief.covariance.copy()
    belief.forget(10.0, 0.0)
    np.testing.assert_array_equal(belief.mean, mean)
    np.testing.assert_array_equal(belief.covariance, cov)
    belief.forget(1e6, 0.5)
    np.testing.assert_allclose(belief.mean, 0.5, atol=1e-12)
    np.testing.assert_allclose(belief.covariance, belief.prior_covariance, atol=1e-12)


def test_forgetting_equals_the_time_varying_kernel():
    """TV-GP-UCB as a batch GP: covariance k(a, b) (1 - eps)^(|s - t| / 2)."""
    rng, rate = np.random.default_rng(1), 0.05
    cells, values = rng.integers(0, 60, 30), rng.normal(size=30)
    prior = covariance(SPACE, VALUES)
    belief = FinitePosterior(0.0, prior, VALUES.noise_variance)
    for cell, value in zip(cells, values, strict=True):
        belief.forget(1.0, rate)
        belief.tell(cell, value)
    times = np.arange(30)
    decay = (1 - rate) ** (abs(times[:, None] - times) / 2)
    gram = prior[np.ix_(cells, cells)] * decay + VALUES.noise_variance * np.eye(30)
    cross = prior[:, cells] * (1 - rate) ** ((29 - times) / 2)
    np.testing.assert_allclose(belief.mean, cross @ np.linalg.solve(gram, values), atol=1e-10)
    exact = prior - cross @ np.linalg.solve(gram, cross.T)
    np.testing.assert_allclose(belief.covariance, exact, atol=1e-10)


def test_the_covariance_equals_gpytorch():
    with torch.no_grad():
        kernel = ArmKernel(SPACE).load(VALUES)
        dense = kernel(torch.as_tensor(SPACE.features().copy())).to_dense().numpy()
    np.testing.assert_allclose(covariance(SPACE, VALUES), dense, atol=1e-12)


def test_fitting_finds_what_made_the_data():
    rng = np.random.default_rng(3)
    truth = Hyperparameters(1.0, 0.01, (0.2, 1.0, 1.0))
    root = np.linalg.cholesky(covariance(SPACE, truth) + 1e-10 * np.eye(60))
    values = root @ rng.standard_normal(60)
    cells = np.repeat(np.arange(60), 3)
    noisy = values[cells] + 0.1 * rng.standard_normal(len(cells))
    fit = fit_hyperparameters(SPACE, SPACE.features()[cells], noisy)
    assert fit.noise_variance == pytest.approx(0.01, rel=0.5)
    assert 0.3 < fit.factors[1] < 4 and 0.3 < fit.factors[2] < 4
    assert fit == fit_hyperparameters(SPACE, SPACE.features()[cells], noisy)


@given(st.integers(0, 2**32 - 1), st.floats(-3, 6))
@settings(max_examples=30)
def test_a_censored_observation_has_the_moments_of_the_truncated_gaussian(seed, bound):
    """Mean and variance of a cell, given that its observation is above a bound, by quadrature."""
    rng = np.random.default_rng(seed)
    belief = FinitePosterior(0.0, covariance(SPACE, VALUES), VALUES.noise_variance)
    for cell in rng.integers(0, 60, 5):
        belief.tell(int(cell), rng.normal())
    cell = int(rng.integers(60))
    mean, sd = belief.mean[cell], belief.sd()[cell]
    values = np.linspace(mean - 9 * sd, mean + 9 * sd + 4, 40_001)
    above = norm.sf((bound - values) / np.sqrt(belief.noise_variance))
    weight = norm.pdf((values - mean) / sd) * above
    expected = (values * weight).sum() / weight.sum()
    variance = ((values - expected) ** 2 * weight).sum() / weight.sum()
    before = belief.sd().copy()
    belief.tell_above(cell, bound)
    assert belief.mean[cell] == pytest.approx(expected, abs=1e-3 * max(1.0, abs(expected)))
    assert belief.sd()[cell] ** 2 == pytest.approx(variance, rel=0.02, abs=1e-6)
    assert (belief.sd() <= before + 1e-12).all()


@given(st.lists(st.integers(0, 59), max_size=8))
@settings(max_examples=30)
def test_variances_after_what_is_running_are_those_after_it_was_told(cells):
    belief, told = (
        FinitePosterior(0.0, covariance(SPACE, VALUES), VALUES.noise_variance) for _ in range(2)
    )
    for cell in cells:
        told.tell(cell, 1.0)
    after = belief.sd_after(np.array(cells, dtype=np.int64))
    np.testing.assert_allclose(after, told.sd(), atol=1e-7)


def test_after_100_000_observations_it_equals_the_batch_to_1e_9():
    rng, noise = np.random.default_rng(0), VALUES.noise_variance
    belief = FinitePosterior(0.0, covariance(SPACE, VALUES), noise)
    cells, values = rng.integers(0, 60, 100_000), rng.normal(size=100_000)
    for cell, value in zip(cells.tolist(), values.tolist(), strict=True):
        belief.tell(cell, value)
    counts = np.bincount(cells, minlength=60)
    means = np.bincount(cells, values, minlength=60) / counts
    prior = covariance(SPACE, VALUES)
    gain = np.linalg.solve(prior + np.diag(noise / counts), prior).T
    np.testing.assert_allclose(belief.mean, gain @ means, atol=1e-9)
    np.testing.assert_allclose(belief.covariance, prior - gain @ prior, atol=1e-9)
    np.testing.assert_allclose(belief.covariance, belief.covariance.T, atol=1e-12)
    assert np.linalg.eigvalsh(belief.covariance).min() > 0


@pytest.mark.parametrize("bound", [-1e6, 1e6])
def test_a_bound_far_from_the_mean_leaves_finite_numbers(bound):
    belief = FinitePosterior(0.0, covariance(SPACE, VALUES), VALUES.noise_variance)
    belief.tell_above(3, bound)
    assert np.isfinite(belief.mean).all() and (belief.sd() >= 0).all()
