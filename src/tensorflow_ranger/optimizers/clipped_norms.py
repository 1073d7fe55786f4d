"""The norm of an update's gradient, and the fraction of it that clipping leaves."""

from keras import ops

from tensorflow_ranger.backend import arrays, keras_internals
from tensorflow_ranger.rules import gradient_norms


def norm_of(gradients):
    """Return the Euclidean norm of a list of gradients together, a float32 scalar."""
    return ops.sqrt(arrays.squared_norm(gradients))


def clips(optimizer):
    """Return whether `optimizer`, or one of a `MultiOptimizer`, clips by one of Keras' arguments.

    Args:
        optimizer: A Keras optimizer that wraps no other.
    """
    return any(
        each.clipnorm or each.global_clipnorm or each.clipvalue
        for each in (optimizer, *getattr(optimizer, "optimizers", ()))
    )


def remaining(optimizer, gradients, variables):
    """Return the fraction of the norm of `gradients` that clipping leaves, a float32 scalar.

    Args:
        optimizer: A Keras optimizer that wraps no other.
        gradients: List of gradients, as the optimizer is given them.
        variables: List of their variables.
    """
    if not clips(optimizer):
        return ops.ones((), "float32")
    clipped = keras_internals.clipped(optimizer, gradients, variables)
    return gradient_norms.remaining(norm_of(gradients), norm_of(clipped))
