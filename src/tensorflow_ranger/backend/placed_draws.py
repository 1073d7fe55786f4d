"""Random numbers as a function of a sample's place in its batch, whatever micro-batch it is in.

A draw of plain Keras for a batch of B samples has shape (k B, ...): its numbers are those of a
counter-based generator, one counter per number. A micro-batch of b samples whose first is the
batch's sample `place` asks for shape (k b, ...), and gets the rows from ``k place`` on.
"""

import copy

from keras import ops

from tensorflow_ranger.backend import draws, keras_internals
from tensorflow_ranger.backend.out_of_memory import is_out_of_memory

_FAR = 0x3243F6A9  # odd, so that its multiples are all the integers, in no order


class PlacedDraws:
    """What Keras' layers draw in one forward pass of a micro-batch.

    Which draws have the samples along their leading axis cannot be told from one shape: an axis of
    8 may be 8 samples, or 8 units. `multiples` compares two passes.

    Where a micro-batch's samples have places anywhere in the batch, and lack some of their steps,
    each sample gets those of the batch's numbers that are its own and that it has steps for.

    Args:
        place: Scalar; the place in its batch of the micro-batch's first sample. Or a vector with
            the places of all its samples.
        rows: Samples of the micro-batch, or None where a graph does not know them.
        multiples: What `multiples` returned, or None to take each leading axis that `rows` divides
            for samples.
        find: Function that returns `multiples` when there is a draw, or None.
        full: For a vector of places: the shape of each draw where samples have all their steps.
    """

    def __init__(self, place, rows, multiples=None, find=None, full=()):
        self._place = place
        self._is_sorted = len(getattr(place, "shape", ())) > 0
        self._full = full
        self._rows = rows if isinstance(rows, int) else None
        self._multiples = multiples
        self._find = find
        #: The leading axis of each draw, in order; None where a graph does not know it.
        self.leading = []
        #: The shape of each draw, with None for what a graph does not know.
        self.shapes = []
        #: States of the `SeedGenerator` objects of draws that have no place, by their ids.
        self.unplaced = {}

    def begun_again(self):
        """Return draws that go on from here, and of which these know nothing."""
        other = copy.copy(self)
        other.leading, other.shapes = list(self.leading), list(self.shapes)
        other.unplaced = dict(self.unplaced)
        return other

    def go_on_from(self, other):
        """Count what `other`, which `begun_again` returned, has drawn."""
        self.leading, self.shapes, self.unplaced = other.leading, other.shapes, other.unplaced

    def draw(self, name, function, arguments):
        """Return what a layer draws; see `keras_internals.drawing_by`."""
        if self._find is not None:
            find, self._find = self._find, None
            self._multiples = find()
        shape = draws.shape_of(name, arguments)
        sizes = draws.static_sizes(shape)
        multiple = self._next_multiple(sizes)
        self.shapes.append(sizes)
        if multiple != 0 and draws.can_place(name):
            if not self._is_sorted:
                rows = None
                if multiple is not None:
                    rows = self._place, draws.numbers_per_sample(multiple, shape)
                return draws.drawn(name, function, arguments, shape, rows)
            full = self._full_shape(sizes)
            if full is not None:
                return self._drawn_of_full(name, function, arguments, shape, multiple, full)
        with keras_internals.drawing_by(self):  # `next_seed` makes this micro-batch's own numbers
            return function(**arguments)

    def next_seed(self, generator, function):
        """Return a seed of this micro-batch's own, for numbers that depend on more than a place."""
        self.unplaced[id(generator.state)] = generator.state
        seed = function()
        place = self._place[0] if self._is_sorted else self._place
        far = ops.cast(place, seed.dtype) * ops.cast(_FAR, seed.dtype)
        return seed + ops.stack([ops.zeros_like(far), far])

    def _full_shape(self, sizes):
        """Return the shape of the present draw of samples that have all their steps, or None."""
        number = len(self.shapes) - 1
        is_known = number < len(self._full) and len(self._full[number]) == len(sizes)
        return self._full[number] if is_known else None

    def _drawn_of_full(self, name, function, arguments, shape, multiple, full):
        """Return those numbers of a draw of shape `full` that a draw of `shape` has room for."""
        inputs = arguments.get("inputs")
        dtype = arguments["dtype"] if inputs is None else inputs.dtype

        def drawn(shape, rows, seed):
            own = {**arguments, "seed": seed, "shape": shape}
            if inputs is not None:
                del own["shape"]
                own |= {"inputs": ops.ones(shape, dtype), "noise_shape": None}
            return draws.drawn(name, function, own, shape, rows)

        if multiple is None:
            numbers = drawn(full, None, arguments["seed"])
            numbers = numbers[tuple(slice(size) for size in shape)]
        else:
            per_sample = draws.numbers_per_sample(multiple, full)
            # Steps that follow each other at the end of a sample need not be drawn.
            is_first = multiple == 1 and self.shapes[-1][2:] == full[2:]
            row = (1, *shape[1:]) if is_first else (multiple, *full[1:])
            seed = keras_internals.drawn_seed(arguments["seed"])  # one for all samples
            numbers = draws.for_each(
                lambda shape, place: drawn(shape, (place, per_sample), seed),
                row,
                self._place,
            )
            numbers = numbers[(slice(None), *(slice(size) for size in shape[1:]))]
        return numbers if inputs is None else inputs * numbers

    def _next_multiple(self, sizes):
        """Return the leading axis' entries per sample, None for no such axis, 0 if unclear."""
        number = len(self.leading)
        self.leading.append(sizes[0] if sizes else 0)
        if self._multiples is not None and number < len(self._multiples):
            return self._multiples[number]
        if not sizes:
            return None
        if sizes[0] is None or self._rows is None:
            return 1 if sizes[0] is None else None
        return None if sizes[0] % self._rows else sizes[0] // self._rows


def measured(look, drawer=None, rows=3):
    """Return the `multiples` of what a model draws, from passes over two numbers of samples.

    Args:
        look: Function of a number of samples that runs a pass and returns its `PlacedDraws`.
        drawer: `PlacedDraws` of a pass that has been, or None.
        rows: Samples of that pass.

    Returns:
        What `multiples` returns, or None for a model that is built for one number of samples.
    """
    other_rows = 3 if rows == 2 else 2
    try:
        drawer = drawer or look(rows)
        other = look(other_rows)
    except Exception as error:
        if is_out_of_memory(error):
            raise
        return None
    return multiples(drawer.leading, rows, other.leading, other_rows)


def multiples(first, first_rows, second, second_rows):
    """Return for each draw of a pass the entries of its leading axis per sample.

    None is for a draw without samples, 0 for one whose leading axis is neither the same nor
    proportional in passes of two sizes. Where passes make another number of draws, return None.

    Args:
        first: ``PlacedDraws.leading`` of a pass over `first_rows` samples.
        first_rows: Integer >= 1.
        second: That of a pass over `second_rows` samples.
        second_rows: Another integer >= 1.
    """
    if len(first) != len(second):
        return None
    return [
        _multiple(one, first_rows, other, second_rows)
        for one, other in zip(first, second, strict=True)
    ]


def _multiple(one, first_rows, other, second_rows):
    if one == other:
        return None
    multiple = one // first_rows
    is_proportional = one == multiple * first_rows and other == multiple * second_rows
    return multiple if is_proportional else 0
