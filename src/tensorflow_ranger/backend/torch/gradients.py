"""PyTorch: a loop in Python that keeps no graph from one micro-batch to the next."""

import keras
import torch

from tensorflow_ranger.backend.torch.loops import fold


def leaves(batch):
    """Return the arrays of the pytree `batch`, without its None leaves."""
    return [leaf for leaf in keras.tree.flatten(batch) if leaf is not None]


def map_leaves(function, batch):
    """Return `batch` with ``function(leaf)`` in place of each leaf but None."""
    return keras.tree.map_structure(lambda x: None if x is None else function(x), batch)


def accumulate(loss_fn, variables, batch, size):
    """Return the batch's loss and its gradients, from micro-batches of `size` samples.

    The gradients are added to each variable's `.grad`, too.

    Args:
        loss_fn: Function ``micro_batch -> (loss, mass)``. A mass of None means that the loss is
            the mean over the samples.
        variables: List of leaf tensors or `keras.Variable`.
        batch: Pytree of arrays with the samples along their leading axes.
        size: Integer >= 1.

    Returns:
        ``(value, gradients)``: a scalar, and a list with a tensor for each variable, or None where
        the loss does not depend on it.
    """
    variables = [v.value if isinstance(v, keras.Variable) else v for v in variables]
    totals = [None] * len(variables)
    dtype = torch.float64 if any(v.dtype == torch.float64 for v in variables) else torch.float32

    def add(sums, micro_batch):
        loss, mass = _add(totals, loss_fn, variables, map_leaves(torch.as_tensor, micro_batch))
        mass = mass.to(dtype) if isinstance(mass, torch.Tensor) else mass
        return sums[0] + loss.to(dtype), sums[1] + mass

    total_loss, total_mass = fold(add, (0, 0), batch, size)
    with torch.no_grad():
        mass = float(total_mass)
        gradients = [
            None if total is None else _mean(total, mass).to(variable.dtype)
            for total, variable in zip(totals, variables, strict=True)
        ]
        for variable, gradient in zip(variables, gradients, strict=True):
            _add_to_grad(variable, gradient)
        return _mean(total_loss, mass), gradients


def _add(totals, loss_fn, variables, micro_batch):
    """Add a micro-batch's gradients to `totals`; return its summed loss and its mass."""
    samples = leaves(micro_batch)[0].shape[0]
    with torch.enable_grad():
        loss, mass = loss_fn(micro_batch)
    scale, mass = (samples, samples) if mass is None else (1, mass)
    for i, gradient in _gradients(loss, variables):
        if totals[i] is None:
            totals[i] = torch.zeros_like(variables[i], dtype=_wide(variables[i].dtype))
        totals[i].add_(gradient, alpha=scale)
    loss = loss.detach()
    return scale * loss.to(_wide(loss.dtype)), mass.detach() if torch.is_tensor(mass) else mass


def _gradients(loss, variables):
    """Return ``(index, gradient)`` for the variables that the loss depends on."""
    wanted = [i for i, variable in enumerate(variables) if variable.requires_grad]
    if not wanted or not loss.requires_grad:
        return []
    gradients = torch.autograd.grad(loss, [variables[i] for i in wanted], allow_unused=True)
    return [(i, g) for i, g in zip(wanted, gradients, strict=True) if g is not None]


def _wide(dtype):
    return torch.float32 if dtype.itemsize < 4 else dtype


def _mean(total, mass):
    return total.div_(mass) if mass else total.zero_()


def _add_to_grad(variable, gradient):
    if gradient is None:
        return
    if variable.grad is None:
        # A copy: what is done to `.grad` later, such as clipping, is not done to the gradient.
        variable.grad = gradient.clone()
    else:
        variable.grad.add_(gradient)


def gradient(function, tensor):
    """Return the gradient of a function of one tensor; None if its scalar depends on none of it."""
    tensor = tensor.detach().requires_grad_()
    with torch.enable_grad():
        value = function(tensor)
    if not value.requires_grad:
        return None
    (slope,) = torch.autograd.grad(value, [tensor], allow_unused=True)
    return slope
