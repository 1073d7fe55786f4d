"""Micro-batches of samples that are about as long as each other, without most of their padding.

A sum has no order, so a batch may be cut anywhere: its samples are sorted by length, cut where the
fewest padded cells are left (`rules.division`), and each micro-batch is trimmed to its longest.
"""

import keras
import numpy as np
from keras import ops

from tensorflow_ranger.backend import arrays, keras_internals
from tensorflow_ranger.backend.batches import first, in_order, trimmed
from tensorflow_ranger.backend.out_of_memory import is_out_of_memory
from tensorflow_ranger.backend.phases import BatchOutputs
from tensorflow_ranger.rules.division import division
from tensorflow_ranger.training.divided_samples import table_of
from tensorflow_ranger.training.metrics_of_batch import outputs_and_masks
from tensorflow_ranger.training.sorted_samples import SortedSamples, TrimmedSamples
from tensorflow_ranger.training.trimmed_slice import TrimmedSlice

BUCKETS = 8  # lengths that compiled steps are made for


class Padding:
    """Cuts batches of padded sequences.

    Args:
        model: A built Keras model.
        value: What stands behind the end of a sample, in each input.
        is_compiled: Whether each shape costs a compilation: then there are `BUCKETS` of them, and
            one more for each that remains where micro-batches don't divide a batch.
        is_in_step: Whether samples are sorted within the step that runs them, in place of Python.
    """

    def __init__(self, model, value, is_compiled, is_in_step=False):
        self._model = model
        self.value = value
        self._is_compiled = is_compiled
        self._is_in_step = is_in_step
        # For each output, and then each of their masks, which of the time axes it has, or None.
        self._axes = []
        self._are_floats = []
        self._sizes = []

    def slices(self, data, size, start=0, stops=()):
        """Return the `Slice` objects of a batch.

        Args:
            data: Tuple ``(x, y, sample_weight)``.
            size: Samples of full length that a micro-batch may be as large as.
            start: How many samples, in the order of their lengths, have been run already.
            stops: Numbers of samples that no micro-batch reaches across.
        """
        sizes = self.sizes_of(data[0])
        lengths = self.lengths_of(data[0], sizes)
        order = np.argsort(-lengths.sum(axis=1), kind="stable")
        lengths, found = lengths[order], []
        for stop in sorted({stop for stop in (*stops, len(order)) if stop > start}):
            for count in self._counts(lengths[start:stop], size, sizes):
                longest = lengths[start : start + count].max(axis=0)
                steps = dict(zip(sizes, self._rounded(longest, sizes), strict=True))
                # In their order, as a loss of the batch takes them.
                places = np.sort(order[start : start + count])
                found.append(TrimmedSlice(self, places, start, steps))
                start += count
        return found

    def sorted(self, data, table=None):
        """Return the `TrimmedSamples` of a batch, or None where Python cuts it into `slices`.

        Args:
            data: Tuple ``(x, y, sample_weight)``.
            table: What `table` returned, as a tensor, for a division that Python has found.

        Raises:
            ValueError: The batch has other time axes than that of which this has learned.
        """
        if table is not None:
            return TrimmedSamples(self, self.sizes_of(data[0]), table)
        if not self._is_in_step:
            return None
        sizes = self.sizes_of(data[0])
        if sizes != self._sizes:
            raise ValueError(
                f"padding={self.value!r} trims batches that are padded to one size for all "
                f"replicas: got time axes of {self._sizes} steps on one replica, and of {sizes} on "
                "another. Pad each batch before it is distributed."
            )
        return SortedSamples(self, data[0], sizes, BUCKETS if self._is_compiled else None)

    def table(self, data, size):
        """Return the `slices` of a batch as one array of integers."""
        return table_of(self.slices(data, size))

    def cells_of(self, data, size):
        """Return the time steps of all samples of a batch, padded, and those that are computed."""
        padded = first(data[0]).shape[0] * sum(self.sizes_of(data[0]))
        in_step = self.sorted(data)
        if isinstance(in_step, SortedSamples):
            return padded, in_step.cells(size)
        return padded, sum(each.cells for each in self.slices(data, size))

    def most_padded(self, x, count):
        """Return the places of `count` samples at most of which trimming takes most, or of none.

        Raises:
            ValueError: No input has a time axis, or samples begin with padding.
        """
        sizes = self.sizes_of(x)
        if not sizes:
            shapes = [tuple(leaf.shape) for leaf in keras.tree.flatten(x) if leaf is not None]
            raise ValueError(
                f"padding={self.value!r} trims the second axis of inputs, and the model fixes its "
                f"size: got inputs of shapes {shapes}. Declare it as keras.Input((None, ...))."
            )
        missing = np.array(sizes) - self.lengths_of(x, sizes)
        if not missing.any() and self._begins_with_padding(x):
            raise ValueError(
                f"padding={self.value!r} trims the ends of samples: got samples that begin with "
                "padding. Pad them behind their end, as "
                "keras.utils.pad_sequences(..., padding='post') does."
            )
        order = np.argsort(-missing.sum(axis=1), kind="stable")[:count]
        return order[missing[order].any(axis=1)]

    def shortened(self, x):
        """Return inputs whose time axes lack some of their steps."""
        return self._trimmed_inputs(x, {size: _shorter(size) for size in self.sizes_of(x)})

    def learn(self, x, outputs, call):
        """Learn which outputs have a time axis.

        Args:
            x: Inputs.
            outputs: What the model makes of them.
            call: Function that calls the model on inputs.

        Raises:
            ValueError: The model cannot be called on fewer steps.
        """
        try:
            shortened = outputs_and_masks(call(self.shortened(x)))
        except Exception as error:
            if is_out_of_memory(error):
                raise
            raise ValueError(
                f"padding={self.value!r} trims samples, and the model cannot be called on fewer "
                f"steps ({error}). Call microbatch without padding=."
            ) from error
        outputs = outputs_and_masks(outputs)
        sizes = self._sizes = self.sizes_of(x)
        self._axes = [
            sizes.index(one.shape[1]) if _is_trimmed(one, other, sizes) else None
            for one, other in zip(outputs, shortened, strict=True)
        ]
        self._are_floats = [
            keras.backend.is_float_dtype(keras.backend.standardize_dtype(leaf.dtype))
            for leaf in outputs
        ]

    @property
    def has_long_outputs(self):
        """Whether an output has a time axis."""
        return any(axis is not None for axis in self._axes)

    def lengths_of(self, x, sizes):
        """Return the steps of each sample up to its last real one, along each time axis.

        A sample without a real step keeps all of them.

        Args:
            x: Inputs.
            sizes: The sizes of the time axes.

        Returns:
            Integer array of shape ``(samples, axes)``.
        """
        lengths = np.zeros((first(x).shape[0], len(sizes)), "int64")
        for leaf in self.long_inputs(x):
            real = ops.convert_to_numpy(leaf) != self.value
            real = real.reshape((*real.shape[:2], -1)).any(axis=2)
            own = np.where(real.any(axis=1), real.shape[1] - np.argmax(real[:, ::-1], axis=1), 0)
            column = sizes.index(leaf.shape[1])
            lengths[:, column] = np.maximum(lengths[:, column], own)
        return np.where(lengths == 0, np.array(sizes), lengths)

    def sizes_of(self, x):
        """Return the sizes of the time axes of inputs, each once, the smallest first.

        Raises:
            ValueError: An input is ragged or sparse.
        """
        leaves = self.long_inputs(x)
        for leaf in leaves:
            if leaf.shape[1] is None or arrays.is_sparse(leaf):
                raise ValueError(
                    f"padding={self.value!r} trims dense arrays: got {type(leaf).__name__}. Pad "
                    "each batch first, such as by Dataset.padded_batch or RaggedTensor.to_tensor."
                )
        return sorted({int(leaf.shape[1]) for leaf in leaves})

    def trimmed_batch(self, data, steps):
        """Return the samples of ``(x, y, sample_weight)`` with their first steps.

        Targets and weights are trimmed where outputs are.

        Args:
            data: The tuple.
            steps: Dict from the size of a time axis to how many steps to keep.
        """
        x, y, sample_weight = data
        aligned = self._axes[: len(keras.tree.flatten(y))]
        y = self._trimmed_leaves(y, steps, aligned)
        sample_weight = self._trimmed_leaves(sample_weight, steps, aligned)
        return self._trimmed_inputs(x, steps), y, sample_weight

    def trimmed_slopes(self, rows, steps):
        """Return for each loss its gradients by the floating outputs, of their first steps."""
        pairs = zip(self._axes, self._are_floats, strict=True)
        axes = [axis for axis, is_float in pairs if is_float]
        return [self._trimmed_leaves(each, steps, axes) for each in rows]

    def filled(self, y, y_pred, sample_weight):
        """Return targets, outputs and weights of a micro-batch with zeros for what was trimmed."""
        masks = [keras_internals.get_mask(leaf) for leaf in keras.tree.flatten(y_pred)]
        aligned = self._axes[: len(keras.tree.flatten(y))]
        found = self._filled_leaves(y_pred, self._axes[: len(masks)])
        for leaf, mask, axis in zip(keras.tree.flatten(found), masks, self._axes, strict=False):
            if mask is not None:
                steps = None if axis is None else self._sizes[axis]
                keras_internals.set_mask(
                    leaf, mask if steps is None else arrays.filled(mask, steps)
                )
        y = self._filled_leaves(y, aligned)
        return y, found, self._filled_leaves(sample_weight, aligned)

    def filled_rows(self, rows):
        """Return ``BatchOutputs.rows`` of a micro-batch with zeros for what was trimmed."""
        return self._filled_leaves(rows, self._axes)

    def _filled_leaves(self, nested, axes):
        def fill(leaf, axis):
            return arrays.filled(leaf, self._sizes[axis])

        return _mapped(fill, nested, axes)

    def in_order(self, cuts, parts):
        """Return what micro-batches made in the order of the batch, as a list of one.

        Steps that were trimmed are zero.

        Args:
            cuts: The `Slice` objects of the batch.
            parts: For each of them its `BatchOutputs`, or outputs and their masks.
        """
        places, added = np.concatenate([each.places for each in cuts]), None
        if isinstance(parts[0], BatchOutputs):
            added = [sum(each) for each in zip(*(part.added for part in parts), strict=True)]
            parts = [part.rows for part in parts]
        sizes, axes, found = list(cuts[0].steps), iter(self._axes), []
        for each in zip(*map(keras.tree.flatten, parts), strict=True):
            axis = None if each[0] is None else next(axes)
            steps = None if axis is None else sizes[axis]
            found.append(None if each[0] is None else in_order(each, places, steps))
        rows = keras.tree.pack_sequence_as(parts[0], found)
        return [rows if added is None else BatchOutputs(rows, added)]

    def _counts(self, lengths, size, sizes):
        if not self._is_compiled:
            return division(lengths, size, np.array(sizes))
        return [min(size, len(lengths) - start) for start in range(0, len(lengths), size)]

    def _rounded(self, longest, sizes):
        if not self._is_compiled:
            return [int(length) for length in longest]
        steps = [-(-size // BUCKETS) for size in sizes]
        return [
            min(size, -(-int(length) // step) * step)
            for length, size, step in zip(longest, sizes, steps, strict=True)
        ]

    def _begins_with_padding(self, x):
        beginnings = [ops.convert_to_numpy(leaf[:, 0]) for leaf in self.long_inputs(x)]
        return any((beginning == self.value).any() for beginning in beginnings)

    def long_inputs(self, x):
        """Return the inputs that have a time axis."""
        return [leaf for leaf, is_long in zip(*self._inputs(x), strict=True) if is_long]

    def _inputs(self, x):
        """Return the leaves of x, and for each whether its second axis is one of time."""
        leaves = keras.tree.flatten(x)
        known = _known_inputs(self._model, x)
        return leaves, [
            leaf is not None
            and len(leaf.shape) > 1
            and (own is None or (len(own.shape) > 1 and own.shape[1] is None))
            for leaf, own in zip(leaves, known, strict=True)
        ]

    def _trimmed_inputs(self, x, steps):
        leaves, are_long = self._inputs(x)
        found = [
            trimmed(leaf, steps[leaf.shape[1]]) if is_long else leaf
            for leaf, is_long in zip(leaves, are_long, strict=True)
        ]
        return keras.tree.pack_sequence_as(x, found)

    def _trimmed_leaves(self, nested, steps, axes):
        sizes = list(steps)

        def trim(leaf, axis):
            is_long = leaf.shape[1] == sizes[axis]
            return trimmed(leaf, steps[sizes[axis]]) if is_long else leaf

        return _mapped(trim, nested, axes)


def _mapped(function, nested, axes):
    """Return nested arrays of which those with a time axis are ``function(leaf, axis)``."""
    leaves = keras.tree.flatten(nested)
    if len(leaves) != len(axes):  # of a loss that takes them its own way
        known = {axis for axis in axes if axis is not None}
        axes = [known.pop() if len(known) == 1 else None] * len(leaves)
    found = [
        leaf if axis is None or leaf is None or len(leaf.shape) < 2 else function(leaf, axis)
        for leaf, axis in zip(leaves, axes, strict=True)
    ]
    return keras.tree.pack_sequence_as(nested, found)


def _shorter(size):
    return max(1, size - max(1, size // 4))


def _is_trimmed(output, shortened, sizes):
    is_long = len(output.shape) > 1 and output.shape[1] in sizes
    return is_long and shortened.shape[1] == _shorter(output.shape[1])


def _known_inputs(model, x):
    """Return for each leaf of x the model's `KerasTensor`, or None where it is not known."""
    leaves = keras.tree.flatten(x)
    known = getattr(model, "inputs", None) or []
    if isinstance(x, dict):
        by_name = {tensor.name: tensor for tensor in known}
        if all(not keras.tree.is_nested(leaf) and name in by_name for name, leaf in x.items()):
            return [by_name[name] for name in sorted(x)]
    return known if len(known) == len(leaves) else [None] * len(leaves)
