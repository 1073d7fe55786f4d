"""The norms of an epoch's gradients: sums over its updates, and the means that are logged."""

import math

from keras import ops

SIZE = 5  # updates, and the sums of the four numbers of an update
#: Clipping that changes nothing may still round: Keras multiplies by a product that is nearly 1.
_ROUNDING = 1e-5


def remaining(norm, clipped_norm):
    """Return the fraction of a gradient's norm that clipping leaves, 1 where it leaves all.

    Args:
        norm: Scalar, float32; norm of the gradient that is clipped.
        clipped_norm: Scalar, float32; its norm after clipping.
    """
    is_clipped = clipped_norm < norm * (1 - _ROUNDING)
    return ops.where(is_clipped, clipped_norm / ops.where(is_clipped, norm, 1.0), 1.0)


def added(sums, norm, micro_batch_norm, left):
    """Return the sums after one more update.

    An update whose gradient holds an infinity or a NaN leaves them as they are.

    Args:
        sums: Tensor of shape ``(SIZE,)``, float32. Zeros before the first update.
        norm: Scalar, float32; norm of the update's gradient.
        micro_batch_norm: Scalar, float32; mean norm of the gradients of its micro-batches.
        left: Scalar, float32; what `remaining` returned.

    Returns:
        Tensor of shape ``(SIZE,)``.
    """
    is_finite = ops.logical_and(ops.isfinite(norm), ops.isfinite(micro_batch_norm))
    update = ops.stack(
        [ops.ones_like(norm), norm, micro_batch_norm, ops.cast(left < 1, "float32"), 1 - left]
    )
    return ops.where(is_finite, sums + update, sums)


def logs(sums, clips):
    """Return the means over the updates by the names they are logged under, NaN if there are none.

    Args:
        sums: What `added` returned.
        clips: Whether the optimizer clips gradients.
    """
    updates, *totals = (sums[place] for place in range(SIZE))
    names = ["gradient_norm", "microbatch_gradient_norm"]
    names += ["clipped_updates", "clipped_fraction"] if clips else []
    return {
        name: ops.where(updates > 0, total / ops.maximum(updates, 1.0), math.nan)
        for name, total in zip(names, totals, strict=False)
    }
