"""What Keras' layers draw in a batch whose training loop is the user's own."""

import contextlib
import functools

from keras import ops

from tensorflow_ranger.backend import draws, gradients, keras_internals
from tensorflow_ranger.backend.batches import count
from tensorflow_ranger.backend.placed_draws import PlacedDraws, measured


class BatchDraws:
    """Lets each micro-batch draw what the batch would draw for its samples.

    No micro-batch moves a `SeedGenerator` on: each begins with the seeds that the batch began with,
    and so does a second pass. `close` moves them on, as one pass over the batch would. On JAX seeds
    are what `loss_fn` makes of them.

    Args:
        batch: Pytree of arrays with the samples along their leading axes.
        size: Samples of a micro-batch.
    """

    def __init__(self, batch, size):
        self._batch = batch
        samples = gradients.leaves(batch)[0].shape[0]
        self._is_known = (
            samples is not None and samples <= size
        )  # of one micro-batch all is its own
        self._multiples = None
        self._generators = {}  # by the ids of their states
        self._numbers = {}  # by these ids: the seeds that the present pass took
        self._most = {}  # the seeds that a pass took at most

    @property
    def batch(self):
        """The batch, and the place of each of its samples."""
        return self._batch, ops.arange(ops.shape(gradients.leaves(self._batch)[0])[0])

    def placed(self, function):
        """Return `function` of a micro-batch of the batch, in place of one of `batch` itself.

        The micro-batch is the last of its arguments.
        """

        def run(*arguments):
            *others, (micro_batch, places) = arguments
            rows, find = count(micro_batch), None
            if not self._is_known and gradients.is_traced():
                find = functools.partial(self._find, function, others)
            drawer = PlacedDraws(draws.place(places[0]), rows, self._multiples, find)
            with self._seeded(drawer, {}):
                result = function(*others, micro_batch)
            # The place of the first micro-batch is 0: it draws alike, whatever is found.
            if drawer.leading and not self._is_known:
                self._find(function, others, drawer, rows)
            return result

        return run

    def of_outputs(self, function):
        """Return `function`, which draws after the micro-batches have drawn."""

        def run(*arguments):
            with self._seeded(None, dict(self._most)):
                return function(*arguments)

        return run

    def close(self):
        """Move the seeds on."""
        for key, number in self._most.items():
            state = self._generators[key].state
            state.assign(_advanced(state.value, number))

    @contextlib.contextmanager
    def _seeded(self, drawer, numbers):
        outer, self._numbers = self._numbers, numbers
        following = self._next_seed if gradients.ASSIGNS_SEEDS else None
        try:
            with keras_internals.drawing_by(drawer, following):
                yield
        finally:
            self._numbers = outer
        for key, number in numbers.items():
            self._most[key] = max(number, self._most.get(key, 0))

    def _next_seed(self, generator):
        key = id(generator.state)
        self._generators[key] = generator
        number = self._numbers.get(key, 0)
        self._numbers[key] = number + 1
        return _advanced(generator.state.value, number)

    def _look(self, function, others, rows):
        """Return the `PlacedDraws` of a pass over so many samples."""
        drawer = PlacedDraws(draws.place(0), rows)
        with self._seeded(drawer, {}):
            gradients.look(lambda *arguments: function(*others, *arguments), self._batch, rows)
        return drawer

    def _find(self, function, others, drawer=None, rows=3):
        """Learn which draws have the samples along their leading axis: see `measured`."""
        self._is_known = True
        look = functools.partial(self._look, function, others)
        self._multiples = measured(look, drawer, rows)
        return self._multiples


def _advanced(seed, number):
    return seed + ops.cast(ops.stack([0, number]), seed.dtype)
