"""Errors that say that memory ran out, in the words of the frameworks and of their libraries."""

import re

from tensorflow_ranger.backend import keras_internals
from tensorflow_ranger.backend.frameworks import framework_of

_OUT_OF_MEMORY = re.compile(
    "|".join(
        (
            # Allocators: PyTorch's for devices, for the CPU, for Apple's; TensorFlow's; XLA's.
            r"out of memory\b[^.]*(\.\d[^.]*)*\. Tried to allocate",
            r"DefaultCPUAllocator: (can't allocate|not enough) memory",
            r"can ?not allocate memory block",
            r"Invalid buffer size: [\d.]+ ?[KMGT]i?B",
            r"out of memory (while trying to |trying to )?allocat",
            r"failed to alloc(ate)? (memory\b|(request for )?[\d.]+ ?([KMGT]i?B?|bytes)\b)",
            r"std::bad_alloc",
            r"Dst tensor is not initialized",
            # Statuses and drivers: "CUDA error: out of memory", "Triton Error [CUDA]: out of ..."
            r"RESOURCE_EXHAUSTED: ",
            r"\b(CUDA|HIP|ROCm|XPU|MPS|NPU)\b[\w :()\[\]]* out of memory\b",
            r"_OUT_OF_(DEVICE_|HOST_)?MEMORY\b",
            # Libraries, which allocate beside the framework. A handle that they fail to create is
            # in public reports most often one that they found no memory for.
            r"_ALLOC(ATION)?_FAILED\b",
            r"\w+Create\(&?handle\)|create (cu|hip|roc)\w+ handle",
            r"CU(BLAS|DNN|SOLVER)_STATUS_NOT_INITIALIZED|cuDNN failed to initialize",
            r"StreamExecutor without BLAS support",
        )
    ),
    re.IGNORECASE,
)

# Other resources that run out, with the same statuses: blocks of a GPU's multiprocessor, files,
# disks, messages.
_OTHER_RESOURCE = re.compile(
    r"shared memory|too many open files|no space left|quota exceeded|(from|to) file\b"
    r"|message larger than max",
    re.IGNORECASE,
)


def is_out_of_memory(error: BaseException | None) -> bool:
    """Return whether `error`, or an error that it was raised from, says that memory ran out.

    Such a batch is worth another try in smaller micro-batches. Types decide where the frameworks
    have one, and texts elsewhere: a text counts in the errors that frameworks raise (`RuntimeError`
    and TensorFlow's own), not in a `ValueError` or `OSError`, but for XLA's, which begins with
    the status ``RESOURCE_EXHAUSTED``.

    A handle of cuBLAS, cuDNN or cuSOLVER that cannot be created counts, although a broken
    installation has the same text: the tries then end in an error that shows it. XLA's "DNN
    library initialization failed" does not count: it is reported for versions that do not match.
    """
    seen = []
    while error is not None and error not in seen:
        if _says_so(error):
            return True
        seen.append(error)
        error = error.__cause__ or keras_internals.wrapped_error(error)
    return False


def _says_so(error):
    if isinstance(error, MemoryError):
        return True
    framework, text = framework_of(error), str(error)
    name = (framework, type(error).__name__)
    if name == ("torch", "OutOfMemoryError"):
        return True
    if _OTHER_RESOURCE.search(text):
        return False
    if name == ("tensorflow", "ResourceExhaustedError"):
        return True
    if isinstance(error, ValueError):
        return text.startswith("RESOURCE_EXHAUSTED: ")
    speaks = isinstance(error, RuntimeError) or framework == "tensorflow"
    return speaks and _OUT_OF_MEMORY.search(text) is not None
