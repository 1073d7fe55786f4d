"""PyTorch: tensors updated in place and many at a time, conditions in Python."""

import contextlib

import keras
import torch

from tensorflow_ranger.backend import keras_internals, process_memory, row_updates
from tensorflow_ranger.backend.torch import row_lists

KEEPS_ALL_ASSIGNMENTS = True  # a variable that a layer assigns is assigned

# What all batch normalizations inherit from, those that are still to learn their size, too.
_BATCH_NORM = torch.nn.modules.batchnorm._BatchNorm  # noqa: SLF001


def version():
    """Return the framework's version string."""
    return torch.__version__


def devices():
    """Return the names of the devices PyTorch computes on."""
    accelerators = [f"cuda:{index}" for index in range(torch.cuda.device_count())]
    return [*accelerators, "cpu"]


def supports_dtype(dtype):
    """Return whether arrays of the dtype named `dtype` can be made."""
    return True


def has_value(variable):
    """Return whether `variable` holds a value, not one that a failed step has taken."""
    return True


def static_value(tensor):
    """Return `tensor` as a NumPy array."""
    return torch.as_tensor(tensor).cpu().numpy()


@torch.no_grad()
def all_finite(tensors):
    """Return a scalar bool: no tensor holds an infinity or a NaN."""
    # `values` of a sparse tensor would first sum its rows, a copy that no test of finiteness needs.
    values = [t._values() if t.is_sparse else t for t in tensors]  # noqa: SLF001
    # A norm keeps an infinity or a NaN, reads a tensor once, and faster than its extremes are
    # found. It may also overflow: then the extremes decide.
    norms = torch._foreach_norm([v.detach() for v in values])  # noqa: SLF001 (many at once)
    finite = torch.isfinite(torch.stack([norm.double() for norm in norms])).all()
    return finite or _each_finite(values)


def _each_finite(values):
    extremes = [torch.stack(torch.aminmax(v)).double() for v in values if v.numel()]
    return torch.isfinite(torch.cat(extremes)).all()


@torch.no_grad()
def squared_norm(tensors):
    """Return the squared Euclidean norm of all `tensors` together, a float32 scalar."""
    values = [t.coalesce().values() if t.is_sparse else t for t in tensors]
    norms = torch._foreach_norm([v.detach().float() for v in values])  # noqa: SLF001 (many at once)
    return torch.stack(norms).square().sum()


@torch.no_grad()
def add_scaled(sums, tensors, scale, keep):
    """Add ``scale * tensors`` to the variables `sums` where the scalar `keep` holds."""
    if not keep:
        return
    pairs = [(total.value, tensor) for total, tensor in zip(sums, tensors, strict=True)]
    for total, tensor in pairs:
        if tensor.is_sparse:
            total.add_(tensor.to(total.dtype), alpha=float(scale))
    dense = [pair for pair in pairs if not pair[1].is_sparse]
    if dense:
        totals, tensors = zip(*dense, strict=True)
        torch._foreach_add_(totals, tensors, alpha=float(scale))


@torch.no_grad()
def divide(sums, divisor, dtypes):
    """Return ``sums / divisor`` as tensors of the given dtypes.

    The sums are divided in place: they are about to be zeroed, and a copy would cost their memory.
    """
    tensors = [total.value for total in sums]
    torch._foreach_div_(tensors, float(divisor))
    return [t.to(getattr(torch, dtype)) for t, dtype in zip(tensors, dtypes, strict=True)]


@torch.no_grad()
def zero(sums, where):
    """Assign zeros to the variables `sums` where the scalar `where` holds."""
    if where:
        torch._foreach_zero_([total.value for total in sums])


@torch.no_grad()
def run_if(predicate, function, variables):
    """Call `function`, which assigns `variables`, where the scalar bool `predicate` holds."""
    if predicate:
        function()


def is_sparse(leaf):
    """Return False: Keras gives models on PyTorch dense tensors."""
    return False


def rows(leaf, start, size):
    """Return a copy of the rows of `leaf` from `start` on, `size` at most.

    Keras' `RandomBrightness` assigns to its inputs in place, and a batch's rows run more than once.
    """
    part = leaf[start : start + size]
    return part.clone() if isinstance(part, torch.Tensor) else part.copy()


def samples_at(leaf, places):
    """Return the rows of `leaf` at these places, a NumPy array of integers."""
    is_tensor = isinstance(leaf, torch.Tensor)
    return leaf[torch.as_tensor(places, device=leaf.device)] if is_tensor else leaf[places]


def filled(leaf, steps):
    """Return `leaf` with zeros behind its second axis, which has `steps` entries then."""
    others = [0, 0] * (leaf.ndim - 2)
    return torch.nn.functional.pad(leaf, [*others, 0, steps - leaf.shape[1]])


def rows_at(leaf, start, count):
    """Return `count` rows of `leaf` from the scalar `start` on."""
    return leaf[start : start + count]


def gradients_of(function, tensors, number):
    """Return the gradients of each of `number` scalars that ``function(tensors)`` returns."""
    leaves = [tensor.detach().requires_grad_() for tensor in tensors]
    scalars = function(leaves)
    return [
        torch.autograd.grad(each, leaves, retain_graph=True, materialize_grads=True)
        if each.requires_grad
        else [torch.zeros_like(leaf) for leaf in leaves]
        for each in scalars
    ]


def copied(value):
    """Return `value` as a tensor that later assignments leave alone."""
    return value.detach().clone()


def foreign_state(model):
    """Return the buffers of the PyTorch modules in `model`, which Keras does not hold."""
    found = {}
    for layer in keras_internals.layers_of(model):
        for path, module in layer.named_modules():
            for name, buffer in module.named_buffers(recurse=False):
                found.setdefault(id(buffer), _Buffer(module, name, f"{layer.path}/{path}.{name}"))
    return list(found.values())


class _Buffer:
    """A module's buffer with the attributes of a Keras variable that are used here."""

    def __init__(self, module, name, path):
        self.module = module
        self.name = name
        self.path = path

    @property
    def value(self):
        return getattr(self.module, self.name)

    @property
    def dtype(self):
        return keras.backend.standardize_dtype(self.value.dtype)

    @property
    def shape(self):
        return tuple(self.value.shape)

    @torch.no_grad()
    def assign(self, value):
        self.value.copy_(value)


def known_means(foreign):
    """Return those of the foreign state that are known to be means over samples."""
    return [
        buffer
        for buffer in foreign
        if isinstance(buffer.module, _BATCH_NORM) and buffer.name in ("running_mean", "running_var")
    ]


def foreign_normalizations(foreign):
    """Return ``(mean, variance, momentum)`` of the foreign state's normalizations."""
    means = {id(b.module): b for b in known_means(foreign) if b.name == "running_mean"}
    return [
        (means[id(b.module)], b, 1.0 - b.module.momentum)
        for b in known_means(foreign)
        if b.name == "running_var" and b.module.momentum
    ]


def initial_value(variable):
    """Return the value of `variable` as a NumPy array."""
    return keras.ops.convert_to_numpy(variable.value)


@contextlib.contextmanager
def kept(model):
    """Leave PyTorch's generators, and the model's gradients and buffers, as they were."""
    parameters = list(model.parameters())
    gradients = [parameter.grad for parameter in parameters]
    buffers = [(buffer, buffer.value.clone()) for buffer in foreign_state(model)]
    devices = range(torch.cuda.device_count() if torch.cuda.is_available() else 0)
    with torch.random.fork_rng(devices):
        try:
            yield
        finally:
            for parameter, gradient in zip(parameters, gradients, strict=True):
                parameter.grad = gradient
            for buffer, value in buffers:
                buffer.assign(value)


def random_state():
    """Return the state of the generators that layers without a seed draw from, as bytes."""
    states = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    return b"".join(state.numpy().tobytes() for state in (torch.get_rng_state(), *states))


def apply(optimizer, gradients, variables):
    """Call `optimizer.apply`.

    A gradient may be a list of rows where the update leaves the others as they are.
    """
    rows_alone = contextlib.nullcontext()
    if any(row_lists.is_list(gradient) for gradient in gradients):
        rows_alone = row_updates.rows_alone(optimizer, row_lists)
    with rows_alone:
        optimizer.apply(gradients, variables)


def plus(total, gradient, factor):
    """Add ``factor * gradient`` to `total` and return it, where a `factor` of None is 1."""
    gradient = gradient.to(total.dtype)
    return total.add_(gradient) if factor is None else total.add_(gradient, alpha=float(factor))


@torch.no_grad()
def times(variable, factor):
    """Multiply `variable` by `factor` and return its tensor."""
    return variable.value.mul_(factor)


def reset_peak_memory():
    """Begin a new peak for `peak_memory`."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    process_memory.reset_peak_memory()


def peak_memory():
    """Return the most bytes in use since `reset_peak_memory`, or None where nobody tells."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    return process_memory.peak_memory()


def wait(tensor):
    """Return when `tensor` has been computed."""
    tensor.item()


@torch.no_grad()
def blend(slots, tensors, share):
    """Assign ``slot + share (tensor - slot)`` to the variables `slots`; `share` is a number."""
    slots = [slot.value for slot in slots]
    torch._foreach_lerp_(slots, _like(tensors, slots), share)


@torch.no_grad()
def blend_where(slots, tensors, share, where):
    """Assign ``slot + share (tensor - slot)`` to `slots` where the scalar bool `where` holds."""
    if where:
        blend(slots, tensors, share)


def computed(tensors):
    """Return `tensors`: PyTorch computes at once."""
    return tensors


@torch.no_grad()
def softplus(tensor):
    """Return ``log(1 + exp(tensor))`` of a `tensor` >= 0."""
    # Beyond 40 both are one number, in float64, too. From PyTorch's own 20 on they differ by 2e-9.
    return torch.nn.functional.softplus(tensor, threshold=40)


@torch.no_grad()
def blend_squares(slots, tensors, share):
    """Assign ``slot + share (tensor^2 - slot)`` to the variables `slots`; `share` is a number."""
    slots = [slot.value for slot in slots]
    tensors = _like(tensors, slots)
    torch._foreach_mul_(slots, 1.0 - share)
    torch._foreach_addcmul_(slots, tensors, tensors, value=share)


@torch.no_grad()
def descend(variables, moments, squares, rate, factor, offset):
    """Subtract ``rate moment / (factor sqrt(square) + offset)`` from the variables."""
    weights, moments = [v.value for v in variables], [moment.value for moment in moments]
    # In the denominator the rate takes no pass and no memory. A rate of 0 must not be divided by.
    rate = torch.clamp(torch.as_tensor(rate), min=1e-37)
    denominators = torch._foreach_sqrt([s.value for s in squares])  # noqa: SLF001 (many at once)
    torch._foreach_mul_(denominators, factor / rate)
    torch._foreach_add_(denominators, offset / rate)
    wide = _like(weights, moments)
    torch._foreach_addcdiv_(wide, moments, denominators, value=-1.0)
    for weight, updated in zip(weights, wide, strict=True):
        if updated is not weight:
            weight.copy_(updated)


def _like(tensors, others):
    return [tensor.to(other.dtype) for tensor, other in zip(tensors, others, strict=True)]
