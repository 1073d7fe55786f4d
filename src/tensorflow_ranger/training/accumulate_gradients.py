"""Value and gradients of a large batch in the memory of a small one."""

import numbers
import warnings
from collections.abc import Callable
from typing import Any, SupportsIndex

import keras

from tensorflow_ranger.backend import arrays, gradients
from tensorflow_ranger.checks import arguments
from tensorflow_ranger.training.batch_draws import BatchDraws
from tensorflow_ranger.training.gradient_inputs import (
    checked_batch,
    checked_variables,
    require_function,
)


def accumulate_gradients(
    loss_fn: Callable,
    variables: Any,
    batch: Any,
    size: SupportsIndex,
    *,
    outputs_fn: Callable | None = None,
    has_aux: bool = False,
) -> tuple[Any, Any]:
    """Return the loss of a batch and its gradients, computed one micro-batch at a time.

    For training loops of one's own: in place of the value and the gradients of the whole batch,
    with the memory of `size` samples. With summed losses ``S_k`` and masses ``D_k`` of the
    micro-batches,

        L = (sum_k S_k) / (sum_k D_k),      G = (sum_k dS_k/dw) / (sum_k D_k).

    A mean loss ``L_k`` over ``B_k`` samples stands for ``S_k = B_k L_k`` and ``D_k = B_k``. The
    samples that are left when `size` does not divide the batch are a micro-batch of their own.
    Layers that look at the whole batch (BatchNormalization) see a micro-batch instead. What Keras'
    layers draw, such as dropout's masks, is what they would draw for the whole batch, and the next
    batch draws other numbers; on JAX it draws them from the seeds that `loss_fn` gives the layers.

    A loss in which samples meet (contrastive, ranking) is no sum over micro-batches. With
    `outputs_fn` it is computed once, on the outputs of the whole batch:

        Z = outputs_fn(x_1) .. outputs_fn(x_K),      L = loss_fn(Z),
        G = dL/dw + sum_k (d outputs_fn(x_k)/dw)^T (dL/dZ)_k.

    Each micro-batch is run forward twice, with the same random numbers: those of Keras' layers, of
    PyTorch's generators, and of keys that are in the batch. What layers assign is assigned once.

    On JAX this is a pure function with the conventions of `jax.value_and_grad`: call it under
    `jax.jit`, or it is compiled anew on each call. On TensorFlow it works eagerly and in a
    `tf.function`; with ``jit_compile=True`` the batch must have a known size. On PyTorch the
    gradients are also added to the variables' `.grad`, as by ``loss.backward()``.

    Args:
        loss_fn: Function ``(variables, micro_batch) -> loss`` on JAX, ``micro_batch -> loss`` on
            TensorFlow and PyTorch. The loss is a scalar: the mean over the samples of the
            micro-batch. Where a mean divides by something else, it is a pair of scalars
            ``(summed_loss, mass)``, such as the sum of the tokens' losses and the number of
            tokens. The mass is not differentiated. A total mass of 0 makes value and gradients 0.
            A metric is no mass: return it beside the loss with ``has_aux=True``. With `outputs_fn`
            a function ``(variables, outputs) -> loss`` or ``outputs -> loss`` of the outputs of
            the whole batch, which returns a scalar.
        variables: What to differentiate with respect to. On JAX a pytree of floating arrays; on
            TensorFlow a list of `tf.Variable` or `keras.Variable`; on PyTorch a list of tensors
            that are leaves of the graph, or of `keras.Variable`.
        batch: Pytree (array, tuple, dict, nested) of arrays of any dtype and of shape
            ``(B, ...)``. Leaves may be None. NumPy arrays become tensors. Other mappings, such as
            a `BatchEncoding` of Transformers, become dicts.
        size: Integer >= 1; samples of a micro-batch.
        outputs_fn: Function ``(variables, micro_batch) -> outputs`` on JAX, ``micro_batch ->
            outputs`` on TensorFlow and PyTorch, or None. Outputs are nested arrays whose leading
            axes are the samples; those that are not floating, such as labels, are handed on.
        has_aux: Whether `loss_fn` returns a pair ``(loss, aux)``, as for `jax.value_and_grad`. Aux
            are nested scalars, such as metrics. Each is a mean over what the loss is a mean over,
            and so is what is returned for the batch. With `outputs_fn` aux is returned as it is.

    Returns:
        ``(value, gradients)``, with `has_aux` ``((value, aux), gradients)``. The value is a float32
        scalar, float64 if a variable is. The gradients are a pytree like `variables`, each of its
        variable's shape and dtype; sums are held in float32 for narrower dtypes. On TensorFlow and
        PyTorch the gradient of a variable that the loss does not depend on is None; on JAX it is
        zero.

    Raises:
        ValueError: `size` is no integer >= 1; `batch` holds no array, a leaf without a leading
            axis, no sample, or leading axes of several sizes; there is no variable; on TensorFlow
            and PyTorch, the loss depends on none of the variables.
        TypeError: `loss_fn` or `outputs_fn` is no function of those arguments; `loss_fn` returns
            neither a scalar tensor nor a pair of scalars, or with `has_aux` no pair of that and
            nested scalars; `variables` or `batch` hold tensors of another framework than that
            which Keras runs on; `variables` is a model, a module or ``named_parameters()``, and
            not its variables.
        tf.errors.InvalidArgumentError: In a `tf.function`, a leading axis unknown until it runs
            turns out to be empty, or of another size than the others.

    Example:
        TensorFlow:

        >>> @tf.function
        ... def update(x, y):
        ...     def loss_fn(micro_batch):
        ...         x, y = micro_batch
        ...         return tf.reduce_mean((model(x, training=True) - y) ** 2)
        ...     variables = model.trainable_variables
        ...     value, gradients = accumulate_gradients(loss_fn, variables, (x, y), size=32)
        ...     optimizer.apply(gradients, variables)
        ...     return value
        >>> value = update(x, y)

        JAX:

        >>> def loss_fn(weights, micro_batch):
        ...     x, y = micro_batch
        ...     return jnp.mean((x @ weights - y) ** 2)
        >>> @jax.jit
        ... def update(weights, x, y):
        ...     value, gradient = accumulate_gradients(loss_fn, weights, (x, y), size=32)
        ...     return value, weights - 0.1 * gradient
        >>> value, weights = update(weights, x, y)

        PyTorch:

        >>> def loss_fn(micro_batch):
        ...     x, y = micro_batch
        ...     return torch.mean((model(x) - y) ** 2)
        >>> optimizer.zero_grad()
        >>> value, _ = accumulate_gradients(loss_fn, model.parameters(), (x, y), size=32)
        >>> optimizer.step()
    """
    size = arguments.count(
        "size", size, "It is the number of samples of a micro-batch: the most that fit into memory."
    )
    _check_functions(loss_fn, outputs_fn)
    variables, batch = checked_variables(variables), checked_batch(batch)
    _check_samples(gradients.leaves(batch))

    def result_and_aux(*arguments):
        result = loss_fn(*arguments)
        return _without_aux(result) if has_aux else (result, ())

    placed = BatchDraws(batch, size)
    if outputs_fn is not None:

        def loss_and_aux(*arguments):
            result, aux = result_and_aux(*arguments)
            return _checked_scalar(result), aux

        value, aux, found = gradients.accumulate_whole(
            placed.of_outputs(loss_and_aux),
            placed.placed(outputs_fn),
            variables,
            placed.batch,
            size,
        )
    else:

        def loss_mass_and_aux(*arguments):
            result, aux = result_and_aux(*arguments)
            return *_checked_loss(result), _checked_aux(aux)

        value, mass, aux, found = gradients.accumulate(
            placed.placed(loss_mass_and_aux), variables, placed.batch, size, has_aux
        )
        _warn_of_small_mass(mass, gradients.leaves(batch)[0].shape[0], size)
    _require_gradients(found)
    placed.close()
    return ((value, aux) if has_aux else value), found


def _check_functions(loss_fn, outputs_fn):
    weights = ["variables"] if keras.config.backend() == "jax" else []
    given = "micro_batch" if outputs_fn is None else "outputs"
    require_function("loss_fn", loss_fn, [*weights, given])
    if outputs_fn is not None:
        require_function("outputs_fn", outputs_fn, [*weights, "micro_batch"])


def _check_samples(arrays):
    if not arrays:
        raise ValueError(
            "batch must hold at least one array: got none. "
            "Give arrays whose leading axis counts the samples."
        )
    for array in arrays:
        if not hasattr(array, "shape"):
            remedy = "Make it an array with a leading axis, or let loss_fn close over it."
            if hasattr(array, "__iter__") and not isinstance(array, str):
                remedy = "Give one batch at a time: for batch in data, accumulate_gradients(...)."
            raise ValueError(
                f"batch must hold arrays: got a leaf of type {type(array).__name__}. {remedy}"
            )
        if len(array.shape) == 0:
            raise ValueError(
                "The arrays of batch must have a leading axis: got a scalar. "
                "Let loss_fn close over what is the same for all samples."
            )
    sizes = [array.shape[0] for array in arrays]
    known = [size for size in sizes if size is not None]
    if len(set(known)) > 1:
        raise ValueError(
            f"The arrays of batch must have leading axes of the same size: got {sizes}. "
            "Give each one row for each sample."
        )
    if 0 in known:
        raise ValueError("batch must hold at least one sample: got 0. Leave empty batches out.")


def _checked_loss(result):
    """Return ``(loss, mass)`` of what `loss_fn` returned; None is the mass of a mean."""
    pair = result if isinstance(result, tuple | list) else (result, 1)
    if len(pair) == 2 and _is_scalar_tensor(pair[0]) and _is_scalar(pair[1]):
        return tuple(pair) if pair is result else (result, None)
    is_aux = len(pair) == 2 and _is_scalar_tensor(pair[0])
    remedy = "Set has_aux=True" if is_aux else "Reduce the loss over all its axes"
    raise TypeError(
        "loss_fn must return a scalar tensor, the mean loss of the micro-batch, or a pair of "
        f"scalars (summed_loss, mass): got {_describe(result)}. {remedy}."
    )


def _checked_scalar(result):
    if _is_scalar_tensor(result):
        return result
    raise TypeError(
        "With outputs_fn, loss_fn must return a scalar tensor, the loss of the whole batch: got "
        f"{_describe(result)}. Return what belongs beside it with has_aux=True."
    )


def _without_aux(result):
    if isinstance(result, tuple | list) and len(result) == 2:
        return result
    raise TypeError(
        f"With has_aux=True, loss_fn must return a pair (loss, aux): got {_describe(result)}. The "
        "loss may be a pair (summed_loss, mass) itself."
    )


def _checked_aux(aux):
    for leaf in keras.tree.flatten(aux):
        if not _is_scalar(leaf):
            raise TypeError(
                f"The aux of loss_fn must be nested scalars: got {_describe(leaf)}. Take the mean "
                "over the samples of the micro-batch."
            )
    return aux


def _warn_of_small_mass(mass, samples, size):
    known = arrays.static_value(mass)
    if known is None or samples is None:
        return
    micro_batches = -(-samples // size)
    if 0 < known <= micro_batches < samples:
        warnings.warn(
            f"loss_fn returned pairs whose second numbers add up to {float(known):.3g} over "
            f"{samples} samples: they are taken for masses, what a summed loss is divided by. If "
            "they are a metric, such as an accuracy, give has_aux=True.",
            stacklevel=3,
        )


def _require_gradients(found):
    if isinstance(found, list) and all(gradient is None for gradient in found):
        raise ValueError(
            f"The loss depends on none of the variables: got {len(found)} and no gradient, so "
            "nothing would be trained. Give the variables of the model that loss_fn calls, with "
            "requires_grad=True on PyTorch, and return the loss itself: not a detached one, and "
            "not one that was computed outside the framework or without gradients."
        )


def _is_scalar_tensor(value):
    return keras.ops.is_tensor(value) and value.shape == ()


def _is_scalar(value):
    return isinstance(value, numbers.Real) or getattr(value, "shape", None) == ()


def _describe(value):
    if isinstance(value, tuple | list):
        return f"({', '.join(_describe(item) for item in value)})"
    if hasattr(value, "shape"):
        return f"{type(value).__name__} of shape {value.shape}"
    return type(value).__name__
