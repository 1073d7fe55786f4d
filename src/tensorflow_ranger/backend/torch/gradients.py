"""PyTorch: a loop in Python that keeps no graph from one micro-batch to the next."""

import contextlib

import keras
import torch

from tensorflow_ranger.backend.batches import resized
from tensorflow_ranger.backend.torch.loops import fold

ASSIGNS_SEEDS = True  # Keras' layers move theirs on


def is_traced():
    """Return whether functions run on tensors without values."""
    return False


@torch.no_grad()
def look(function, batch, rows):
    """Call ``function(micro_batch)`` of so many samples, and leave all as it was."""
    with _modules_undone(), keras.StatelessScope():
        function(resized(map_leaves(torch.as_tensor, batch), rows))


def leaves(batch):
    """Return the arrays of the pytree `batch`, without its None leaves."""
    return [leaf for leaf in keras.tree.flatten(batch) if leaf is not None]


def map_leaves(function, batch):
    """Return `batch` with ``function(leaf)`` in place of each leaf but None."""
    return keras.tree.map_structure(lambda x: None if x is None else function(x), batch)


def accumulate(loss_fn, variables, batch, size, has_aux):
    """Return the batch's loss and its gradients, from micro-batches of `size` samples.

    The gradients are added to each variable's `.grad`, too.

    Args:
        loss_fn: Function ``micro_batch -> (loss, mass, aux)``. A mass of None means that the loss
            is the mean over the samples; aux are nested scalars that are such means.
        variables: List of leaf tensors or `keras.Variable`.
        batch: Pytree of arrays with the samples along their leading axes.
        size: Integer >= 1.
        has_aux: Whether aux holds anything.

    Returns:
        ``(value, mass, aux, gradients)``: a scalar, what it was divided by, aux of the batch, and
        a list with a tensor for each variable, or None where the loss does not depend on it.
    """
    variables = _plain(variables)
    totals = [None] * len(variables)
    dtype = _dtype_of(variables)

    def add(sums, micro_batch):
        loss, mass, aux = _add(totals, loss_fn, variables, map_leaves(torch.as_tensor, micro_batch))
        mass = mass.to(dtype) if isinstance(mass, torch.Tensor) else mass
        aux = keras.tree.map_structure(lambda value: torch.as_tensor(value).detach() * mass, aux)
        if sums[2] is not None:
            aux = keras.tree.map_structure(torch.add, sums[2], aux)
        return sums[0] + loss.to(dtype), sums[1] + mass, aux

    total_loss, total_mass, aux = fold(add, (0, 0, None), batch, size)
    with torch.no_grad():
        mass = float(total_mass)
        gradients = [
            None if total is None else _mean(total, mass).to(variable.dtype)
            for total, variable in zip(totals, variables, strict=True)
        ]
        for variable, gradient in zip(variables, gradients, strict=True):
            _add_to_grad(variable, gradient)
        aux = keras.tree.map_structure(lambda total: _mean(total, mass), aux)
        return _mean(total_loss, mass), mass, aux, gradients


def accumulate_whole(loss_fn, outputs_fn, variables, batch, size):
    """Return a loss of the whole batch and its gradients, from micro-batches of `size` samples.

    The gradients are added to each variable's `.grad`, too.

    Args:
        loss_fn: Function ``outputs -> (loss, aux)`` of the batch's outputs.
        outputs_fn: Function ``micro_batch -> outputs``: nested tensors with the samples along their
            leading axes.
        variables: List of leaf tensors or `keras.Variable`.
        batch: Pytree of arrays with the samples along their leading axes.
        size: Integer >= 1.

    Returns:
        ``(value, aux, gradients)``: a scalar, what `loss_fn` returned beside it, and a list with a
        tensor for each variable, or None where the loss does not depend on it.
    """
    variables = _plain(variables)
    parts = []

    def forward(state, micro_batch):
        parts.append(outputs_fn(map_leaves(torch.as_tensor, micro_batch)))
        return state

    with torch.no_grad(), _modules_undone(), keras.StatelessScope():
        fold(forward, None, batch, size)
    outputs = keras.tree.map_structure(lambda *rows: torch.cat(rows), *parts)
    rows = [row.detach() for row in keras.tree.flatten(outputs)]
    floats = [row.requires_grad_() for row in rows if row.is_floating_point()]
    with torch.enable_grad():
        loss, aux = loss_fn(keras.tree.pack_sequence_as(outputs, rows))
    totals: list[torch.Tensor | None] = [None] * len(variables)
    slopes = [torch.zeros_like(row) for row in floats]
    for i, gradient in _gradients(loss, [*variables, *floats]):
        if i < len(variables):
            totals[i] = gradient.to(_wide(gradient.dtype))
        else:
            slopes[i - len(variables)] = gradient

    def add(state, part):
        micro_batch, slopes = part
        with torch.enable_grad():
            found = keras.tree.flatten(outputs_fn(map_leaves(torch.as_tensor, micro_batch)))
            inputs = [row for row in found if row.is_floating_point()]
            pulled = sum((slope * row).sum() for slope, row in zip(slopes, inputs, strict=True))
        _add_gradients(totals, pulled, variables, 1)
        return state

    fold(add, None, (batch, slopes), size)
    with torch.no_grad():
        gradients = [
            None if total is None else total.to(variable.dtype)
            for total, variable in zip(totals, variables, strict=True)
        ]
        for variable, gradient in zip(variables, gradients, strict=True):
            _add_to_grad(variable, gradient)
    detached = keras.tree.map_structure(lambda v: v.detach() if torch.is_tensor(v) else v, aux)
    return loss.detach(), detached, gradients


@contextlib.contextmanager
def _modules_undone():
    """Leave generators, and the buffers of modules that are called inside, as they were."""
    held = {}

    def hold(module, arguments):
        for buffer in module.buffers(recurse=False):
            held.setdefault(id(buffer), (buffer, buffer.clone()))

    devices = range(torch.cuda.device_count() if torch.cuda.is_available() else 0)
    handle = torch.nn.modules.module.register_module_forward_pre_hook(hold)
    try:
        with torch.random.fork_rng(devices):
            yield
    finally:
        handle.remove()
        for buffer, value in held.values():
            buffer.copy_(value)


def _plain(variables):
    return [v.value if isinstance(v, keras.Variable) else v for v in variables]


def _dtype_of(variables):
    is_wide = any(variable.dtype == torch.float64 for variable in variables)
    return torch.float64 if is_wide else torch.float32


def _add(totals, loss_fn, variables, micro_batch):
    """Add a micro-batch's gradients to `totals`; return its summed loss, its mass and aux."""
    samples = leaves(micro_batch)[0].shape[0]
    with torch.enable_grad():
        loss, mass, aux = loss_fn(micro_batch)
    scale, mass = (samples, samples) if mass is None else (1, mass)
    _add_gradients(totals, loss, variables, scale)
    loss = loss.detach()
    mass = mass.detach() if torch.is_tensor(mass) else mass
    return scale * loss.to(_wide(loss.dtype)), mass, aux


def _add_gradients(totals, loss, variables, scale):
    for i, gradient in _gradients(loss, variables):
        if totals[i] is None:
            totals[i] = torch.zeros_like(variables[i], dtype=_wide(variables[i].dtype))
        totals[i].add_(gradient, alpha=scale)


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
