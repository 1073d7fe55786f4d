"""A loss of the whole batch, cut at the model's outputs.

A loss in which samples meet is a function of the outputs of the whole batch, ``L = loss(y, Z)``
with ``Z = (z_1 .. z_K)``. By the chain rule, what a micro-batch needs of it is its own rows of
``dL/dZ``:

    pass 1      z_k = f(x_k; w)                     no gradient; seeds and state as in pass 2
    the loss    L = loss(y, Z), dL/dZ, dL/dtheta    theta: the weights that the loss itself reads
    pass 2      g_w += J_k^T (dL/dZ)_k              the gradient of <stop((dL/dZ)_k), z_k>

What layers add (`add_loss`) is one more output: a number per batch, made of the micro-batches'.
"""

import keras
from keras import ops

from tensorflow_ranger.backend import keras_internals
from tensorflow_ranger.backend.phases import BatchOutputs, OutputSpecs, Slopes
from tensorflow_ranger.training.metrics_of_batch import masked


class WholeLoss:
    """Takes a model's outputs apart, and puts those of a batch together again.

    Args:
        compiled_losses: `CompiledLosses` of the model.
    """

    def __init__(self, compiled_losses):
        self._compiled_losses = compiled_losses
        self._structure = None
        self._has_mask = []
        self._floats = []
        self._owners = []
        self.specs = OutputSpecs([], [])

    def find(self, y_pred):
        """Learn from a micro-batch's outputs how they are nested, and which have masks."""
        leaves = keras.tree.flatten(y_pred)
        self._structure = keras.tree.map_structure(lambda _: 0, y_pred)
        self._has_mask = [keras_internals.get_mask(leaf) is not None for leaf in leaves]
        masks = [mask for mask in map(keras_internals.get_mask, leaves) if mask is not None]
        added = self._compiled_losses.added.by_layers(1)
        self._owners = [layer for layer, _ in added]
        dtype = keras.backend.standardize_dtype
        self.specs = OutputSpecs(
            [(tuple(row.shape[1:]), dtype(row.dtype)) for row in (*leaves, *masks)],
            [dtype(value.dtype) for _, value in added],
        )
        self._floats = [
            place
            for place, leaf in enumerate(leaves)
            if keras.backend.is_float_dtype(dtype(leaf.dtype))
        ]

    def outputs_of(self, y_pred, fraction):
        """Return the `BatchOutputs` of a micro-batch, inside the scope of its forward pass.

        Args:
            y_pred: The model's outputs.
            fraction: Scalar; the micro-batch's fraction of the batch's samples.
        """
        leaves = keras.tree.flatten(y_pred)
        masks = [
            keras_internals.get_mask(leaf)
            for leaf, has_mask in zip(leaves, self._has_mask, strict=True)
            if has_mask
        ]
        added = [value for _, value in self._compiled_losses.added.by_layers(fraction)]
        return BatchOutputs([*leaves, *masks], added)

    def inputs_of(self, outputs):
        """Return the tensors in `BatchOutputs` that the loss is differentiated by."""
        return [*(outputs.rows[place] for place in self._floats), *outputs.added]

    def y_pred_of(self, outputs, inputs):
        """Return the batch's outputs as the loss takes them, and add what layers have added.

        Args:
            outputs: `BatchOutputs` of the batch.
            inputs: Tensors in place of those that `inputs_of` returns.
        """
        leaves = list(outputs.rows[: len(self._has_mask)])
        for place, value in zip(self._floats, inputs[: len(self._floats)], strict=True):
            leaves[place] = value
        keras_internals.forget_losses(self._compiled_losses.model)
        for layer, value in zip(self._owners, inputs[len(self._floats) :], strict=True):
            layer.add_loss(value)
        rest = iter(outputs.rows[len(self._has_mask) :])
        masks = [next(rest) if has_mask else None for has_mask in self._has_mask]
        return masked(keras.tree.pack_sequence_as(self._structure, leaves), masks)

    def slopes_of(self, gradients):
        """Return the `Slopes` of lists of gradients by what `inputs_of` returns, one per loss."""
        rows = len(self._floats)
        return Slopes([each[:rows] for each in gradients], [each[rows:] for each in gradients])

    def pulled_back(self, y_pred, fraction, slopes):
        """Return for each loss the scalar whose gradient is the micro-batch's part of the loss'.

        Args:
            y_pred: The micro-batch's outputs.
            fraction: Scalar; its fraction of the batch's samples.
            slopes: `Slopes` of its rows.
        """
        inputs = self.inputs_of(self.outputs_of(y_pred, fraction))
        return [
            sum(
                ops.sum(ops.cast(slope, value.dtype) * value)
                for slope, value in zip([*rows, *added], inputs, strict=True)
            )
            for rows, added in zip(*slopes, strict=True)
        ]
