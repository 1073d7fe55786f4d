"""TensorFlow: the gradients of a micro-batch, added to the sums of its batch."""

import tensorflow as tf

from tensorflow_ranger.backend.phases import Added
from tensorflow_ranger.backend.tensorflow.arrays import squared_norm
from tensorflow_ranger.backend.tensorflow.recorder import recorded_by

KEEPS_MASKS = True  # of outputs that a loss was computed of


def current_values(variables):
    """Return pairs of the variables and the values an inner scope must be told: none."""
    return []


def add_gradients(share, phases, sums, factor, inputs=None, weights=None):
    """Add the gradients of ``share(None)`` to the sums.

    Args:
        share: Function of values of the weights that returns ``(loss, aux)``; with several losses,
            loss is a list of them. With `inputs` it takes those, too.
        phases: `Phases`.
        sums: The accumulator's sums: one per weight, for each loss.
        factor: Scalar that gradients are multiplied by, or None.
        inputs: List of tensors by which `share` is differentiated as well, or None.
        weights: For each weight its value as a tensor, or None for the variable; or None for all.

    Returns:
        `Added`.
    """
    own = [weight.value for weight in phases.weights]
    if weights is not None:
        own = [o if v is None else v for o, v in zip(own, weights, strict=True)]
    with tf.GradientTape(persistent=phases.losses > 1) as tape, recorded_by(tape):
        tape.watch([*(v for v in weights or [] if v is not None), *(inputs or [])])
        loss, aux = share(weights) if inputs is None else share(weights, inputs)
    cuts = inputs is not None  # then the weights are those of the loss itself
    inputs = inputs or []
    found = [tape.gradient(each, [*own, *inputs]) for each in tf.nest.flatten(loss)]
    gradients = [gradient for each in found for gradient in each[: len(own)]]
    slopes = [
        [
            tf.zeros_like(tensor) if slope is None else tf.convert_to_tensor(slope)
            for slope, tensor in zip(each[len(own) :], inputs, strict=True)
        ]
        for each in found
    ]
    square = None
    if phases.measures_gradients and not cuts:
        square = squared_norm([gradient for gradient in gradients if gradient is not None])
    sums = [
        total if gradient is None else phases.accumulator.add(i, total, gradient, factor)
        for i, (total, gradient) in enumerate(zip(sums, gradients, strict=True))
    ]
    return Added(sums, aux, square, [gradient is not None for gradient in gradients], slopes)


def filled(sums, empty, like):
    """Return the sums, and an empty list: a trace knows which of them have gradients."""
    return sums, []
