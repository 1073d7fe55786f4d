"""What the rules promise, and that they keep it where the gradients are degenerate."""

import functools
import re

import numpy as np
import pytest
from keras import ops

from tensorflow_ranger.multitask import cagrad, pcgrad, quadratic_program
from tensorflow_ranger.multitask.combinations import COMBINATIONS
from tests.marks import first, first_but
from tests.references.task_combination import TWINS, random_gradients, structured_gradients
from tests.unit.multitask.rules import combined, compiled, gram_matrix, weights

STRUCTURED = structured_gradients()
NAMES = ("sum", "pcgrad", "mgda", "cagrad", "upgrad", "aligned")
PROJECTING = ("sum", "pcgrad", "upgrad")  # those whose weights a vanished task does not change
names = pytest.mark.parametrize("name", NAMES)


def longest(gradients):
    return max(float(np.linalg.norm(gradients, axis=1).max()), 1e-300)


def whole(name, matrices):
    """Return those that the rule treats as its paper does: not with PCGrad's drawn orders."""
    limit = pcgrad.ALL_ORDERS_UP_TO if name == "pcgrad" else np.inf
    return [gradients for gradients in matrices if len(gradients) <= limit]


def assert_close(result, expected, gradients, tolerance=1e-10):
    np.testing.assert_allclose(result, expected, rtol=0, atol=tolerance * longest(gradients))


def test_the_names_and_their_order():
    assert tuple(COMBINATIONS) == tuple(TWINS) == NAMES


@names
def test_twin_on_random_gradients(name, float64):
    for gradients in whole(name, random_gradients()):
        assert_close(combined(name, gradients), TWINS[name](gradients), gradients)


@names
def test_twin_on_structured_gradients(name, float64):
    for gradients in whole(name, STRUCTURED.values()):
        # Where the gradients cancel, rounding of the squares shows as its root.
        assert_close(combined(name, gradients), TWINS[name](gradients), gradients, 3e-8)


@pytest.mark.parametrize("name", ["mgda", "cagrad", "upgrad"])
def test_twin_where_one_gradient_is_a_millionth_of_the_others(name, float64):
    """To digits of the short one: the others must not drown it."""
    rows = np.random.default_rng(1).normal(size=(4, 9))
    for scales in ([1e-6, 1, 1, 1], [1e-6, 1, 1e-3, 1e3], [1, 1e-8, 1, 1e-8]):
        gradients = np.array(scales)[:, None] * rows
        result, expected = combined(name, gradients), TWINS[name](gradients)
        shortest = np.linalg.norm(gradients, axis=1).min()
        unit = float(shortest if name == "mgda" else np.linalg.norm(expected))
        np.testing.assert_allclose(result, expected, rtol=0, atol=1e-8 * unit)


@first
@pytest.mark.parametrize("c", [0.1, 0.9, 1.0, 1.5])
def test_cagrad_of_another_radius(c, float64):
    rule = functools.partial(cagrad.weights, c=c)
    for gradients in random_gradients(30):
        if np.linalg.matrix_rank(gradients) < len(gradients) or len(gradients) > 4:
            continue
        result = combined(rule, gradients)
        assert_close(result, TWINS["cagrad"](gradients, c), gradients)


@first
@names
def test_float32_is_finite_and_blind_to_the_scale(name):
    """The scale is that of the Gram matrix. By a power of 2 it changes no digit."""
    for gradients in STRUCTURED.values():
        plain = weights(name, gradients, "float32")
        assert np.isfinite(plain).all()
        for scale in (2.0**-53, 2.0**-33, 2.0**33):  # 1e-32, 1e-20, 1e20 in the Gram matrix
            scaled = weights(name, scale * gradients, "float32")
            np.testing.assert_allclose(scaled, plain, rtol=1e-5, atol=1e-6)


@first
@names
def test_float32_is_as_good_as_its_digits(name, float64):
    for gradients in random_gradients(40):
        if np.linalg.cond(gradients) > 30:
            continue
        assert_close(
            combined(name, gradients, "float32"), combined(name, gradients), gradients, 1e-3
        )


@names
@pytest.mark.parametrize("scale", first_but([1e-140, 1e140], [1e-140, 1e-10, 1e10, 1e140]))
def test_float64_is_blind_to_the_scale(name, scale, float64):
    for gradients in STRUCTURED.values():
        result = combined(name, scale * gradients) / scale
        assert_close(result, combined(name, gradients), gradients, 3e-7)


@first
@names
def test_eager_as_compiled(name, float64):
    gradients = np.random.default_rng(2).normal(size=(2, 12))
    eager = ops.convert_to_numpy(COMBINATIONS[name](gram_matrix(gradients)))
    assert_close(eager @ gradients, combined(name, gradients), gradients)


@names
@pytest.mark.parametrize("tasks", [2, 10])
def test_compiled_for_xla(name, tasks, float64):
    gradients = np.random.default_rng(tasks).normal(size=(tasks, 12))
    if tasks > pcgrad.ALL_ORDERS_UP_TO and name == "pcgrad":
        expected = combined(name, gradients)
    else:
        expected = TWINS[name](gradients)
    xla = ops.convert_to_numpy(compiled(COMBINATIONS[name], xla=True)(gram_matrix(gradients)))
    # TensorFlow's eigh for XLA stops at 1e-6.
    assert_close(xla @ gradients, expected, gradients, 1e-6)


# What follows from the twins' numbers, which every backend has.


@first
@names
def test_the_numbering_of_the_tasks_does_not_matter(name, float64):
    for gradients in whole(name, STRUCTURED.values()):
        order = np.random.default_rng(2).permutation(len(gradients))
        assert_close(combined(name, gradients[order]), combined(name, gradients), gradients, 3e-8)


@first
@names
def test_a_rotation_of_the_gradients_does_not_matter(name, float64):
    rotation, _ = np.linalg.qr(np.random.default_rng(4).normal(size=(7, 7)))
    for gradients in (STRUCTURED["duplicates"], STRUCTURED["lengths_apart"]):
        rotated = combined(name, gradients @ rotation)
        assert_close(rotated, combined(name, gradients) @ rotation, gradients, 1e-7)


@first
@pytest.mark.parametrize("name", ["mgda", "upgrad"])
def test_no_task_is_made_worse(name, float64):
    for gradients in [*random_gradients(), *STRUCTURED.values()]:
        products = gradients @ combined(name, gradients)
        assert products.min() >= -3e-8 * longest(gradients) ** 2


@first
@pytest.mark.parametrize("name", ["pcgrad", "cagrad", "aligned"])
def test_the_other_rules_promise_no_such_thing(name, float64):
    least = min((g @ combined(name, g)).min() for g in random_gradients() if len(g) > 2)
    assert least < -0.01


@first
def test_pcgrad_makes_none_of_two_tasks_worse(float64):
    for gradients in random_gradients():
        assert (gradients[:2] @ combined("pcgrad", gradients[:2])).min() >= -1e-10


@first
@pytest.mark.parametrize(
    ("name", "linear"),
    [(name, name in ("sum", "pcgrad", "upgrad")) for name in NAMES],
)
def test_linearity_in_the_scale_of_each_task(name, linear, float64):
    """A task twice as long adds its own share twice: not so where lengths decide."""
    gradients = random_gradients()[4][:4]
    once = combined(name, gradients)
    scales = np.eye(len(gradients)) + 1
    total = sum(combined(name, row[:, None] * gradients) for row in scales)
    error = np.abs(total - (len(gradients) + 1) * once).max()
    assert (error < 1e-10 * longest(gradients)) == linear


@names
def test_what_a_vanished_task_does(name, float64):
    """The docstrings say so."""
    gradients = np.random.default_rng(6).normal(size=(3, 5))
    gradients[1] = gradients[0] * 0.1 + np.abs(gradients[1]).sum() * gradients[2] * 0.01
    with_zero = np.vstack([gradients, np.zeros(5)])
    weight = weights(name, with_zero)
    if name in PROJECTING:
        share = 3 / 4 if name == "upgrad" else 1
        np.testing.assert_allclose(weight[:3], share * weights(name, gradients), rtol=1e-10)
        np.testing.assert_allclose(weight[3], 1 / 4 if name == "upgrad" else 1)
    elif name == "mgda":
        np.testing.assert_array_equal(weight, [0, 0, 0, 1])
    elif name == "aligned":
        np.testing.assert_allclose(weight[3], 0, atol=1e-12)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("sum", 1),
        ("pcgrad", 1),
        ("mgda", 1 / 3),
        ("cagrad", 0),
        ("upgrad", 1 / 3),
        ("aligned", 1 / 3),
    ],
)
def test_all_vanished(name, expected, float64):
    np.testing.assert_allclose(weights(name, np.zeros((3, 4))), np.full(3, expected), rtol=1e-14)


@pytest.mark.parametrize("name", ["pcgrad", "mgda", "cagrad", "upgrad", "aligned"])
def test_opposite_gradients_cancel(name, float64):
    gradients = STRUCTURED["opposite"]
    assert_close(combined(name, gradients), np.zeros(7), gradients)


@first
def test_without_conflict_projections_are_the_sum_and_the_mean(float64):
    gradients = np.abs(np.random.default_rng(8).normal(size=(5, 6)))
    np.testing.assert_array_equal(weights("pcgrad", gradients), np.ones(5))
    np.testing.assert_array_equal(weights("upgrad", gradients), np.full(5, 1 / 5))


@first
def test_mgda_is_a_convex_combination(float64):
    for gradients in [*random_gradients(), *STRUCTURED.values()]:
        weight = weights("mgda", gradients)
        assert weight.min() >= 0
        np.testing.assert_allclose(weight.sum(), 1, rtol=1e-14)


@first
def test_cagrad_without_a_ball_is_the_mean(float64):
    rule = functools.partial(cagrad.weights, c=0)
    for gradients in STRUCTURED.values():
        weight = weights(rule, gradients)
        np.testing.assert_array_equal(weight, np.full(len(gradients), 1 / len(gradients)))


@first
def test_cagrad_stands_on_the_ball_or_still(float64):
    for gradients in [*random_gradients(), *STRUCTURED.values()]:
        mean = gradients.mean(axis=0)
        result = combined("cagrad", gradients)
        if result.any():
            radius = np.linalg.norm(result - mean)
            np.testing.assert_allclose(radius, 0.5 * np.linalg.norm(mean), rtol=1e-6)


def test_aligned_makes_orthogonal_gradients_equally_long(float64):
    gradients = STRUCTURED["orthogonal"]
    np.testing.assert_allclose(combined("aligned", gradients), np.full(5, 0.1 / 5), rtol=1e-12)


@first
def test_pcgrad_of_more_tasks_draws_the_same_orders_again(float64):
    gradients = STRUCTURED["six"]
    first = combined("pcgrad", gradients)
    pcgrad._orders.cache_clear()
    again = ops.convert_to_numpy(pcgrad.weights(gram_matrix(gradients)))
    np.testing.assert_allclose(again @ gradients, first)
    error = np.abs(first - TWINS["pcgrad"](gradients)).max()
    assert 0 < error < 0.1 * longest(gradients)


@pytest.mark.parametrize("name", ["mgda", "cagrad", "upgrad"])
def test_too_many_tasks(name):
    gram = ops.eye(quadratic_program.MOST_TASKS + 1)
    with pytest.raises(ValueError, match=r"got 11 tasks, expected at most 10\. .* or use"):
        COMBINATIONS[name](gram)


@first
@pytest.mark.parametrize("name", ["sum", "pcgrad", "aligned"])
def test_many_tasks_where_no_sets_are_tried(name):
    assert np.isfinite(ops.convert_to_numpy(COMBINATIONS[name](ops.eye(20)))).all()


@names
@pytest.mark.parametrize("shape", [(3,), (2, 3), (0, 0), (2, 2, 2)])
def test_another_shape(name, shape):
    with pytest.raises(ValueError, match=re.escape("shape (T, T), with T tasks known while")):
        COMBINATIONS[name](ops.zeros(shape))


@names
def test_another_dtype(name):
    with pytest.raises(ValueError, match=r"float32 or float64: got float16\. "):
        COMBINATIONS[name](ops.ones((2, 2), dtype="float16"))


@pytest.mark.parametrize("c", [-0.1, float("nan")])
def test_another_ball(c):
    with pytest.raises(ValueError, match=r"c must be a number >= 0: got .*\. Use 0"):
        cagrad.weights(ops.eye(2), c=c)


def test_aligned_keeps_components_above_rounding(float64):
    """A component a millionth as long as the first is one; it sets the length of the result."""
    gradients = np.diag([1.0, 1e-6])
    np.testing.assert_allclose(weights("aligned", gradients), [0.5e-6, 0.5], rtol=1e-6)
