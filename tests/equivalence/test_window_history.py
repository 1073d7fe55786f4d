"""Any history of a window equals a slow float64 model: masses, losses, saves, changes of K."""

import functools

import hypothesis
import keras
import numpy as np
import pytest
from hypothesis import strategies as st

from tensorflow_ranger import RangerOptimizer
from tests.driver import Driver
from tests.marks import thorough_but
from tests.references.window import WindowedMomentum

SHAPES = [(2, 3), (3,)]

masses = st.one_of(st.just(0.0), st.floats(0.1, 100))
bad_values = st.sampled_from([np.nan, np.inf, -np.inf])
micro_batch = st.tuples(st.just("apply"), masses, st.integers(0, 999))
bad_micro_batch = st.tuples(st.just("apply bad"), masses, bad_values)
change = st.tuples(st.just("accumulation_steps"), st.integers(1, 5))
others = st.sampled_from([("flush",), ("save",), ("load",)])
histories = st.lists(st.one_of(micro_batch, micro_batch, bad_micro_batch, change, others))


@functools.cache
def driver(reduction):
    rng = np.random.default_rng(0)
    # Keras on TensorFlow rounds a momentum of 0.9 to float32: these values are exact.
    optimizer = RangerOptimizer(learning_rate=0.125, momentum=0.5, reduction=reduction)
    weights = [rng.normal(size=shape) for shape in SHAPES]
    return Driver(optimizer, weights, "float64", masses=reduction == "mean")


def gradients(seed):
    rng = np.random.default_rng(seed)
    return [rng.normal(size=shape) for shape in SHAPES]


def bad_gradients(value):
    first, second = gradients(0)
    second[1] = value
    return [first, second]


class Run:
    """The optimizer and its reference, side by side."""

    def __init__(self, reduction):
        self.driver = driver(reduction)
        self.driver.restart()
        self.reference = WindowedMomentum(self.driver.weights, 4, reduction=reduction)
        self.reduction = reduction
        self.save()

    def apply(self, mass, values):
        mass = mass if self.reduction == "mean" else 1.0
        self.driver.apply(values, mass)
        self.reference.apply(values, mass)

    def save(self):
        store = {}
        self.driver.optimizer.save_own_variables(store)
        self.saved = store, self.driver.weights, self.reference.state()

    def load(self):
        store, weights, state = self.saved
        self.driver.restart()
        self.driver.optimizer.load_own_variables(store)
        for variable, weight in zip(self.driver.variables, weights, strict=True):
            variable.assign(weight)
        self.reference.restore(state)

    def step(self, action, *arguments):
        if action == "apply":
            self.apply(arguments[0], gradients(arguments[1]))
        elif action == "apply bad":
            self.apply(arguments[0], bad_gradients(arguments[1]))
        elif action == "accumulation_steps":
            self.driver.optimizer.accumulation_steps = arguments[0]
            self.reference.accumulation_steps = arguments[0]
        elif action == "flush":
            self.driver.optimizer.finalize_variable_values(self.driver.variables)
            self.reference.flush()
        elif action == "save":
            self.save()
        elif action == "load":
            self.load()

    def assert_equal(self):
        optimizer = self.driver.optimizer
        assert int(optimizer.iterations) == self.reference.updates
        assert optimizer.pending_micro_batches == len(self.reference.window)
        assert optimizer.skipped_micro_batches == self.reference.skipped
        for actual, expected in zip(self.driver.weights, self.reference.weights, strict=True):
            np.testing.assert_allclose(actual, expected, rtol=1e-10, atol=1e-10)


@pytest.mark.filterwarnings("ignore:Left out .* micro-batch:UserWarning")
@pytest.mark.parametrize("examples", thorough_but([50], [50, 300]))
@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_any_history(reduction, examples, float64):
    @hypothesis.settings(max_examples=examples, deadline=None)
    @hypothesis.given(histories)
    def follow(history):
        run = Run(reduction)
        for action in history:
            run.step(*action)
            run.assert_equal()

    try:
        follow()
        assert driver(reduction).traces == 1 or keras.config.backend() == "torch"
    finally:
        driver.cache_clear()
