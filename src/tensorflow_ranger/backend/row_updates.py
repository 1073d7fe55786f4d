"""Which updates of a table move the rows with a gradient alone, and how these rows move."""

import contextlib

import keras
from keras import ops

from tensorflow_ranger.backend import keras_internals

# Settings by which Keras' optimizers move rows without a gradient, or need the whole gradient.
_MOVE_OTHERS = (
    "momentum",
    "weight_decay",
    "use_ema",
    "clipnorm",
    "global_clipnorm",
    "clipvalue",
    "loss_scale_factor",
    "gradient_accumulation_steps",
)


def leave_others(optimizer, variable):
    """Return whether `optimizer` leaves rows of `variable` as they are that have no gradient.

    It does if it is Keras' SGD without momentum or Keras' Adagrad, and does nothing else to the
    gradient or the variable.
    """
    # Keras makes both a class of its own on PyTorch; a user's subclass may do anything.
    is_keras = type(optimizer).__module__.startswith("keras.")
    if not (is_keras and isinstance(optimizer, (keras.optimizers.SGD, keras.optimizers.Adagrad))):
        return False
    changes = (variable.regularizer, variable.constraint)
    return not (
        any(getattr(optimizer, name, None) for name in _MOVE_OTHERS)
        or any(each is not None for each in changes)
        or getattr(variable, "overwrite_with_gradient", False)
    )


@contextlib.contextmanager
def rows_alone(optimizer, lists):
    """Inside, `optimizer`, for which `leave_others` holds, takes gradients that are lists of rows.

    Of Adagrad's update ``a <- a + g^2, w <- w - eta g / sqrt(a + epsilon)`` and of SGD's
    ``w <- w - eta g`` only the rows with a g are computed.

    Args:
        optimizer: The optimizer.
        lists: The backend's module `row_lists`.
    """

    def move(gradient, variable, rate):
        squares = keras_internals.accumulator_of(optimizer, variable)
        if squares is None:
            places, rows = lists.parts(gradient)
        else:
            places, rows = lists.parts(lists.summed(gradient))
            lists.add_rows(squares, places, ops.square(rows))
            rows = rows / ops.sqrt(lists.rows_at(squares, places) + optimizer.epsilon)
        lists.add_rows(variable, places, -ops.cast(rate, variable.dtype) * rows)

    def update(gradients, variables, rate):
        dense = []
        for gradient, variable in zip(gradients, variables, strict=True):
            if lists.is_list(gradient):
                move(gradient, variable, rate)
            else:
                dense.append((gradient, variable))
        if dense:
            own(*map(list, zip(*dense, strict=True)), rate)

    with keras_internals.update_step_replaced(optimizer, update) as own:
        yield
