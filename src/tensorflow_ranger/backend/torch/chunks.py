"""PyTorch: a sum over chunks of rows, whose gradient is found chunk by chunk on the way forward."""

import torch

from tensorflow_ranger.backend.torch.loops import fold


def summed_over_chunks(function, hidden, weights, rows, state, size, dtype):
    """Return the sum over chunks of what `function` returns, and the last chunk's state.

    The gradient of a chunk is found as soon as its value is, and all that a chunk makes is gone
    before the next one begins. The backward pass multiplies the sums of the gradients.

    Args:
        function: Function of a chunk of `hidden`, `weights`, a chunk of `rows` and a state that
            returns ``(value, state)``: a scalar to differentiate by the first two, and a state.
        hidden: Floating tensor.
        weights: List of floating tensors.
        rows: Nested tensors, or None, with as many rows as `hidden`.
        state: Nested tensors that a chunk hands to the next one; of them nothing is differentiated.
        size: Rows of a chunk. A remainder smaller than that comes last.
        dtype: Name of the dtype of the sum.
    """
    found = []

    def run(hidden, weights):
        total, after, *gradients = _summed(function, hidden, weights, rows, state, size, dtype)
        found.append(after)
        return total, gradients

    total = _Summed.apply(run, hidden, *weights)
    return total, found[0]


class _Summed(torch.autograd.Function):
    @staticmethod
    def forward(ctx, run, hidden, *weights):
        total, gradients = run(hidden, weights)
        ctx.save_for_backward(*gradients)
        ctx.dtypes = [tensor.dtype for tensor in (hidden, *weights)]
        return total

    @staticmethod
    def backward(ctx, *slopes):
        (factor,) = slopes
        found = zip(ctx.saved_tensors, ctx.dtypes, strict=True)
        # In place: a copy of the largest gradients would be the peak of a small head.
        return None, *(gradient.mul_(factor).to(dtype) for gradient, dtype in found)


def _summed(function, hidden, weights, rows, state, size, dtype):
    """Return the sum, the state, and the gradients by `hidden` and by each of `weights`."""
    weights = [weight.detach().requires_grad_() for weight in weights]
    slopes = torch.empty_like(hidden)
    sums = [torch.zeros_like(weight, dtype=_wide(weight.dtype)) for weight in weights]

    def add(carry, chunk):
        start, total, state = carry
        own_hidden, own_rows = chunk
        own_hidden = own_hidden.detach().requires_grad_()
        with torch.enable_grad(), _Products(weights, sums):
            value, state = function(own_hidden, weights, own_rows, state)
        slope, *found = torch.autograd.grad(value, [own_hidden, *weights], allow_unused=True)
        stop = start + own_hidden.shape[0]
        slopes[start:stop] = slope
        for gradient, each in zip(sums, found, strict=True):
            if each is not None:
                gradient.add_(each)
        return stop, total + value.detach(), state

    zero = torch.zeros((), dtype=getattr(torch, dtype), device=hidden.device)
    _, total, state = fold(add, (0, zero, state), (hidden.detach(), rows), size)
    return total, state, slopes, *sums


class _Products(torch.overrides.TorchFunctionMode):
    """Lets the gradients of products with `weights` be added to `sums` where they are computed.

    A gradient as large as the weight itself would be written and read again for every chunk.
    """

    def __init__(self, weights, sums):
        super().__init__()
        self._pairs = [
            (weight, total)
            for weight, total in zip(weights, sums, strict=True)
            if weight.ndim == 2 and weight.dtype == total.dtype
        ]

    def __torch_function__(self, function, types, args=(), kwargs=None):
        if function is torch.matmul:
            for weight, total in self._pairs:
                for own, own_total in ((weight, total), (weight.T, total.T)):
                    if _is_same(args[1], own):
                        return _Product.apply(args[0], own, own_total)
        return function(*args, **(kwargs or {}))


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx, rows, weight, total):
        ctx.save_for_backward(rows, weight)
        ctx.total = total
        return torch.matmul(rows, weight)

    @staticmethod
    def backward(ctx, *slopes):
        (slope,), (rows, weight) = slopes, ctx.saved_tensors
        ctx.total.addmm_(rows.flatten(0, -2).T, slope.flatten(0, -2))
        return torch.matmul(slope, weight.T), None, None


def _is_same(tensor, weight):
    """Return whether `tensor` is `weight`, or the same view of it."""
    return (
        tensor.data_ptr() == weight.data_ptr()
        and tensor.shape == weight.shape
        and tensor.stride() == weight.stride()
        and tensor.dtype == weight.dtype
    )


def _wide(dtype):
    return torch.float32 if dtype.itemsize < 4 else dtype
