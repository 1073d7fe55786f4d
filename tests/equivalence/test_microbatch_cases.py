"""Random trainings end with the same weights and history whatever the size of a micro-batch.

`pytest tests/equivalence/test_microbatch_cases.py -m "" -k "[57]"` runs the case `draw(57)` alone.
"""

import contextlib
import dataclasses

import keras
import numpy as np
import pytest
from keras.src.backend.common import dtypes  # noqa: TID251 (see `exact`)

from tensorflow_ranger.training.microbatch import install
from tests.equivalence.random_cases import draw
from tests.marks import thorough_but

DRAWS = 100  # each is tried with three sizes
SIZES = 3
IN_EVERY_SUITE = 15  # with one size each; so many bodies take turns
BACKEND = keras.config.backend()
TOLERANCE = 1e-10

# What `compile` is given for the whole batch: whatever is fastest. Eager JAX compiles every
# operation by itself, which takes ten times as long as compiling the step.
ORACLE = {"run_eagerly": BACKEND != "jax", "jit_compile": BACKEND == "jax"}
EAGER = {"run_eagerly": True, "jit_compile": False}
GRAPH = {"jit_compile": False}
XLA = {"jit_compile": True}
RUNS = {  # what `compile` is given and how to loop, by turns
    "tensorflow": [
        (GRAPH, None),
        (EAGER, None),
        (EAGER, None),
        (GRAPH, "host"),
        (EAGER, None),
        (EAGER, None),
        (GRAPH, "device"),
        (EAGER, None),
        (EAGER, None),
        (EAGER, None),
    ],
    "jax": [(XLA, None), (XLA, "host"), (XLA, "device")],
    "torch": [(GRAPH, None), (EAGER, None), (GRAPH, "host")],
}[BACKEND]
RARE_RUN = {"tensorflow": XLA, "jax": EAGER, "torch": GRAPH}[BACKEND]  # seconds to compile
RARE = 25  # a draw in so many has it, the first one behind those of every suite


@pytest.fixture
def exact(float64, monkeypatch):
    """Compute in float64 throughout.

    On JAX and torch Keras makes the promotion of float64 with anything float32, so that ``mean``,
    ``var`` or JAX's ``tanh`` round float64 values by 1e-8, by how much depends on the batch.
    """
    monkeypatch.setitem(dtypes.BIT64_TO_BIT32_DTYPE, "float64", "float64")
    with _quickly_compiled() if BACKEND == "jax" else contextlib.nullcontext():
        yield


@contextlib.contextmanager
def _quickly_compiled():
    import jax

    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


def run_of(seed, turn):
    """Return the arguments of `compile` and the loop for the `turn`-th size of a draw."""
    if seed % RARE == IN_EVERY_SUITE and turn == 0:
        return RARE_RUN, None
    return RUNS[(3 * seed + turn) % len(RUNS)]


def whole_batch(case):
    """Return the weights and the history of plain `fit`."""
    model = case.model(**ORACLE)
    history = model.fit(**case.arguments()).history
    return model.get_weights(), history


def in_micro_batches(case, size, compile_settings, loop, loss=None):
    model = install(case.model(**compile_settings), size, loop=loop, loss=loss)
    history = model.fit(**case.arguments()).history
    return model.get_weights(), history


def assert_same(actual, expected, ignore=()):
    for weight, other in zip(actual[0], expected[0], strict=True):
        np.testing.assert_allclose(weight, other, rtol=TOLERANCE, atol=TOLERANCE)
    assert actual[1].keys() == expected[1].keys()
    for key in expected[1].keys() - set(ignore):
        np.testing.assert_allclose(
            actual[1][key], expected[1][key], rtol=TOLERANCE, atol=TOLERANCE, err_msg=key
        )


@contextlib.contextmanager
def told(note):
    """Add `note` to whatever error happens."""
    try:
        yield
    except Exception as error:
        error.add_note(note)
        raise


def comparable(case):
    """Return the case without what plain Keras itself gets wrong."""
    if BACKEND == "torch" and case.masked and case.weights != "none":
        # Keras multiplies the sample weights in place by the mask, scaled by how much of the batch
        # is masked, and weighted metrics then see the product.
        return dataclasses.replace(case, metrics=False)
    if BACKEND == "tensorflow" and (case.optimizer, case.option) == ("Muon", "schedule"):
        # Keras multiplies a float32 schedule by a float64 weight.
        return dataclasses.replace(case, option="none")
    if BACKEND == "tensorflow" and case.tokens and case.option == "loss_scale_factor":
        # Keras divides the list of rows that is a table's gradient, and fails.
        return dataclasses.replace(case, option="none")
    if BACKEND == "jax" and case.body in ("shared", "dict_inputs"):
        # Of a layer that is called twice Keras' step counts one activity regularizer, its other
        # backends and ours count both.
        settings = tuple(name for name in case.settings if name != "activity_regularizer")
        return dataclasses.replace(case, settings=settings)
    return case


def ignored(case):
    """Return the keys of the history that plain `fit` does not compute alike in every mode."""
    if BACKEND == "tensorflow" and case.samples % case.batch_size:
        # With batches of several sizes a graph does not know the size of a batch, and Keras then
        # gives every batch the same weight in the mean of an output's loss; eager Keras does not.
        return [f"{name}_loss" for name in ("a", "b", "c", "rest/b", "rest/c")]
    return ()


@pytest.mark.parametrize(
    ("seed", "turns"),
    [
        *(pytest.param(s, [s % SIZES], id=f"{s}, one size") for s in range(IN_EVERY_SUITE)),
        *(
            pytest.param(s, range(SIZES), id=str(s), marks=pytest.mark.thorough)
            for s in range(DRAWS)
        ),
    ],
)
def test_a_random_training(seed, turns, exact, record_property):
    case = comparable(draw(seed))
    with told(f"plain fit of draw({seed}) = {case}"):
        expected = whole_batch(case)
    for turn in turns:
        size = case.sizes[turn]
        compile_settings, loop = run_of(seed, turn)
        with told(f"{size=}, {loop=}, compile({compile_settings}) of draw({seed}) = {case}"):
            actual = in_micro_batches(case, size, compile_settings, loop)
            assert_same(actual, expected, ignored(case))
    record_property("cases", len(turns))
    keras.backend.clear_session()


@pytest.mark.parametrize("seed", thorough_but(range(3), range(DRAWS)))
def test_a_random_training_whose_loss_is_computed_once(seed, exact, record_property):
    case = comparable(draw(seed))
    size = case.sizes[seed % len(case.sizes)]
    compile_settings, loop = run_of(seed, 1)
    with told(f"{size=}, {loop=}, compile({compile_settings}) of draw({seed}) = {case}"):
        actual = in_micro_batches(case, size, compile_settings, loop, loss="whole")
        assert_same(actual, whole_batch(case), ignored(case))
    record_property("cases", 1)
    keras.backend.clear_session()
