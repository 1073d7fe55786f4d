"""Which framework an object comes from, without importing any."""

_FRAMEWORKS = {"torch": "torch", "tensorflow": "tensorflow", "jax": "jax", "jaxlib": "jax"}


def framework_of(value):
    """Return "tensorflow", "jax" or "torch", whose class `value` is an instance of, or None.

    Instances of subclasses count, such as a user's `torch.nn.Module`. NumPy arrays and Python's
    own types belong to no framework.
    """
    packages = (cls.__module__.partition(".")[0] for cls in type(value).__mro__)
    return next((_FRAMEWORKS[name] for name in packages if name in _FRAMEWORKS), None)
