"""The rows that a micro-batch draws are those of the whole batch's draw."""

import keras
import numpy as np
import pytest
from keras import ops

from tensorflow_ranger.backend import draws, keras_internals
from tensorflow_ranger.backend.placed_draws import PlacedDraws, multiples
from tests.marks import first_but

BACKEND = keras.config.backend()
BATCH = 13
REST = [(), (3,), (4,), (2, 5)]
FUNCTIONS = {
    "dropout": lambda shape, dtype, seed: keras.random.dropout(
        ops.ones(shape, dtype=dtype), 0.3, seed=seed
    ),
    "normal": lambda shape, dtype, seed: keras.random.normal(shape, 1.0, 2.0, dtype, seed),
    "truncated_normal": lambda shape, dtype, seed: keras.random.truncated_normal(
        shape, 1.0, 2.0, dtype, seed
    ),
    "uniform": lambda shape, dtype, seed: keras.random.uniform(shape, -1.0, 2.0, dtype, seed),
    "randint": lambda shape, dtype, seed: keras.random.randint(shape, -3, 40, "int32", seed),
}
PLACED = [name for name in FUNCTIONS if draws.can_place(name)]


def drawn(name, rest, dtype, rows, place=0, multiple=1, is_placed=True, seed=7):
    """Return what a micro-batch draws twice from one generator, the second time."""
    seed = keras.random.SeedGenerator(seed)
    drawer = PlacedDraws(draws.place(place), rows) if is_placed else None
    with keras_internals.drawing_by(drawer):
        FUNCTIONS[name]((2,), dtype, seed)
        return ops.convert_to_numpy(FUNCTIONS[name]((multiple * rows, *rest), dtype, seed))


@pytest.mark.parametrize(
    ("rest", "dtype"),
    first_but(
        [*((rest, "float32") for rest in REST), ((2, 5), "float16"), ((2, 5), "float64")],
        [(rest, dtype) for rest in REST for dtype in ("float32", "float16", "float64")],
    ),
    ids=str,
)
@pytest.mark.parametrize("name", PLACED)
def test_rows_are_those_of_the_whole_batch(name, rest, dtype, request):
    if dtype == "float64":
        request.getfixturevalue("float64")
    is_own = BACKEND == "torch"  # a stream that Keras does not draw
    whole = drawn(name, rest, dtype, BATCH, is_placed=is_own)
    parts = [drawn(name, rest, dtype, rows, place) for place, rows in ((0, 5), (5, 7), (12, 1))]
    np.testing.assert_array_equal(np.concatenate(parts), whole)


@pytest.mark.parametrize("name", PLACED)
def test_a_sample_may_have_several_rows(name):
    whole = drawn(name, (3,), "float32", BATCH, multiple=4, is_placed=BACKEND == "torch")
    parts = [
        drawn(name, (3,), "float32", rows, place, multiple=4) for place, rows in ((0, 5), (5, 8))
    ]
    np.testing.assert_array_equal(np.concatenate(parts), whole)


@pytest.mark.parametrize("rest", [(3,), (4,), (5, 3), (2, 5)], ids=str)
@pytest.mark.parametrize("name", PLACED)
def test_samples_may_be_anywhere_and_lack_steps(name, rest):
    is_own = BACKEND == "torch"
    whole = drawn(name, rest, "float32", BATCH, is_placed=is_own)
    places, shorter = np.array([2, 3, 7, 12], "int32"), (rest[0] - 1, *rest[1:])
    full = [[2], [BATCH, *rest]]
    seed = keras.random.SeedGenerator(7)
    drawer = PlacedDraws(places, len(places), [None, 1], full=full)
    with keras_internals.drawing_by(drawer):
        FUNCTIONS[name]((2,), "float32", seed)
        part = FUNCTIONS[name]((len(places), *shorter), "float32", seed)
    np.testing.assert_allclose(
        ops.convert_to_numpy(part), whole[places][:, : shorter[0]], rtol=1e-6
    )


@pytest.mark.parametrize("name", PLACED)
def test_the_last_axis_may_lack_steps_of_several_rows(name):
    whole = drawn(name, (3, 4), "float32", BATCH, multiple=2, is_placed=BACKEND == "torch")
    whole = whole.reshape(BATCH, 2, 3, 4)
    places = np.array([1, 4, 5], "int32")
    drawer = PlacedDraws(places, 3, [None, 2], full=[[2], [2 * BATCH, 3, 4]])
    seed = keras.random.SeedGenerator(7)
    with keras_internals.drawing_by(drawer):
        FUNCTIONS[name]((2,), "float32", seed)
        part = FUNCTIONS[name]((6, 2, 3), "float32", seed)
    expected = whole[places][:, :, :2, :3].reshape(6, 2, 3)
    np.testing.assert_allclose(ops.convert_to_numpy(part), expected, rtol=1e-6)


@pytest.mark.parametrize("name", PLACED)
def test_places_may_be_far_away(name):
    # 2^22 samples of 2,048 numbers: more than 2^32 numbers lie before.
    far = 2**22
    first = drawn(name, (2048,), "float32", 2, far)
    assert not np.array_equal(first, drawn(name, (2048,), "float32", 2, 0))
    np.testing.assert_array_equal(first[1:], drawn(name, (2048,), "float32", 1, far + 1))


def test_what_has_no_place_is_drawn_from_a_seed_of_the_micro_batch():
    seed = keras.random.SeedGenerator(1)
    found, names = [], []
    for place in (0, 5):
        drawer = PlacedDraws(draws.place(place), 5)
        with keras_internals.drawing_by(drawer):
            found.append(ops.convert_to_numpy(keras.random.gamma((5, 3), 2.0, seed=seed)))
        names.append(list(drawer.unplaced.values()))
    assert not np.isclose(found[0], found[1]).any()
    assert names == [[seed.state]] * 2


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        ([8, 16, 1, 8, 7], [2, 4, 1, 8, 3], [1, 2, None, None, 0]),
        ([8, 8], [2], None),
        ([], [], []),
    ],
)
def test_two_passes_tell_the_rows_of_a_sample(first, second, expected):
    assert multiples(first, 8, second, 2) == expected


@pytest.mark.parametrize("name", PLACED)
def test_a_draw_without_samples_is_the_same_in_each_micro_batch(name):
    def of(place):
        drawer = PlacedDraws(draws.place(place), 4, [None])
        with keras_internals.drawing_by(drawer):
            return ops.convert_to_numpy(FUNCTIONS[name]((4, 3), "float32", 1))

    np.testing.assert_array_equal(of(0), of(4))


if BACKEND == "tensorflow":
    import tensorflow as tf

    @pytest.mark.parametrize("is_xla", [False, True], ids=["graph", "xla"])
    @pytest.mark.parametrize("name", PLACED)
    def test_a_graph_draws_the_rows_of_a_graph(name, is_xla):
        @tf.function(jit_compile=is_xla)
        def whole():
            return FUNCTIONS[name]((BATCH, 3), "float32", 7)

        @tf.function(jit_compile=is_xla)
        def rows(place):
            with keras_internals.drawing_by(PlacedDraws(place, 4)):
                return FUNCTIONS[name]((4, 3), "float32", 7)

        found = np.concatenate([rows(tf.constant(place)) for place in (0, 4, 8)])
        if name == "normal" and is_xla:  # XLA's normal numbers depend on the shape of all
            again = np.concatenate([rows(tf.constant(place)) for place in (2, 6)])
            np.testing.assert_array_equal(again, found[2:10])
        else:
            np.testing.assert_array_equal(found, whole()[:12])
