"""The rules agree with TorchJD, whose aggregators nobody here wrote."""

import itertools

import cvxpy
import numpy as np
import pytest
import torch
from torchjd import aggregation
from torchjd.linalg import QuadprogProjector

from tensorflow_ranger.multitask import pcgrad
from tests.marks import first
from tests.references.task_combination import random_gradients, structured_gradients
from tests.unit.multitask.rules import combined

STRUCTURED = structured_gradients()
MATRICES = [*random_gradients(), *STRUCTURED.values()]
TOLERANCE = 1e-6  # of the longest gradient


def theirs(aggregator, gradients):
    """Return what TorchJD's aggregator makes of the gradients, on the CPU in float64."""
    return aggregator(torch.tensor(gradients, dtype=torch.float64, device="cpu")).numpy()


def assert_close(result, expected, gradients, tolerance=TOLERANCE):
    longest = np.linalg.norm(gradients, axis=1).max()
    np.testing.assert_allclose(result, expected, rtol=0, atol=tolerance * longest)


def test_sum(float64):
    for gradients in MATRICES:
        assert_close(combined("sum", gradients), theirs(aggregation.Sum(), gradients), gradients)


def test_aligned(float64):
    for gradients in MATRICES:
        expected = theirs(aggregation.AlignedMTL(), gradients)
        assert_close(combined("aligned", gradients), expected, gradients)


def test_pcgrad_of_two_tasks(float64):
    for gradients in MATRICES:
        expected = theirs(aggregation.PCGrad(), gradients[:2])
        assert_close(combined("pcgrad", gradients[:2]), expected, gradients)


def test_pcgrad_over_all_orders(float64, monkeypatch):
    """TorchJD draws an order for every task: here it is given all, and its mean is taken."""
    for gradients in [*random_gradients(30), *STRUCTURED.values()]:
        if len(gradients) > pcgrad.ALL_ORDERS_UP_TO:
            continue
        results = []
        for order in itertools.permutations(range(len(gradients))):
            monkeypatch.setattr(torch, "randperm", lambda _, order=order: torch.tensor(order))
            results.append(theirs(aggregation.PCGrad(), gradients))
        assert_close(combined("pcgrad", gradients), np.mean(results, axis=0), gradients)


@first
def test_upgrad(float64):
    """TorchJD adds 1e-4 to the diagonal: here nothing, or where quadprog refuses that, 1e-13."""
    for gradients in MATRICES:
        if not gradients.any():
            continue  # without its minimum of the norm, TorchJD divides by 0
        expected = None
        for added in (0.0, 1e-13, 1e-12):
            projector = QuadprogProjector(norm_eps=0.0, reg_eps=added)
            try:
                expected = theirs(aggregation.UPGrad(projector=projector), gradients)
                break
            except Exception as error:
                if "positive definite" not in str(error):
                    raise
        assert expected is not None
        assert_close(combined("upgrad", gradients), expected, gradients)


def test_mgda_of_two_tasks(float64):
    """With two tasks the line search of TorchJD's Frank-Wolfe method ends at the solution."""
    solver = aggregation.MGDA(epsilon=1e-12, max_iters=1000)
    for gradients in MATRICES:
        assert_close(combined("mgda", gradients[:2]), theirs(solver, gradients[:2]), gradients)


@first
def test_mgda(float64):
    """With more its distance falls like 1 / iterations only; but it comes with a bound.

    The squared distance to the shortest vector of the hull is at most ``max_t d . (d - g_t)``. Our
    bound is rounding.
    """
    solver = aggregation.MGDA(epsilon=1e-12, max_iters=300)
    for gradients in MATRICES:
        size = np.square(gradients).sum(axis=1).max()
        ours, other = combined("mgda", gradients), theirs(solver, gradients)
        bound = (other @ (other - gradients).T).max()
        assert np.square(ours - other).sum() <= bound + 1e-13 * size
        assert ours @ ours <= other @ other + 1e-14 * size
        assert (ours @ (ours - gradients).T).max() <= 1e-12 * size


@pytest.fixture
def tight(monkeypatch):
    """Let Clarabel go on as long as it can: at its 1e-8 the direction is right to 1e-4."""
    solve = cvxpy.Problem.solve
    limits = ("tol_gap_abs", "tol_gap_rel", "tol_feas", "tol_ktratio")

    def solve_tightly(problem, solver):
        return solve(problem, solver, **dict.fromkeys(limits, 1e-16))

    monkeypatch.setattr(cvxpy.Problem, "solve", solve_tightly)


@first
@pytest.mark.filterwarnings("ignore:Solution may be inaccurate:UserWarning")
def test_cagrad(float64, tight):
    """Clarabel bounds the objective; ours is never worse, and the direction agrees to 1e-5.

    TorchJD returns zeros where its combination is shorter than `norm_eps`, 1e-4 of all gradients
    together. Ours asks whether the gradients cancel, at whatever length: so there `norm_eps` is
    lowered below the length of the shortest gradient.
    """
    for gradients in MATRICES:
        ours = combined("cagrad", gradients)
        threshold = 1e-4 if not ours.any() else 1e-9
        other = theirs(aggregation.CAGrad(c=0.5, norm_eps=threshold), gradients)
        assert_close(ours, other, gradients, 1e-5)
        size = np.square(gradients).sum(axis=1).max()
        assert (gradients @ ours).min() >= (gradients @ other).min() - 1e-9 * size
