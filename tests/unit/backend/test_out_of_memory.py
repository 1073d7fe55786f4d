"""Errors that mean that memory ran out are told from those that only mention memory."""

import importlib

import keras
import numpy as np
import pytest

from tensorflow_ranger.backend.out_of_memory import is_out_of_memory

BACKEND = keras.config.backend()
DEBUG = (
    "\nCUDA kernel errors might be asynchronously reported at some other API call, so the "
    "stacktrace below might be incorrect.\nFor debugging consider passing CUDA_LAUNCH_BLOCKING=1"
)

# The class that is raised and a text as users have published it, by framework.
OUT_OF_MEMORY = {
    "torch": [
        ("OutOfMemoryError", "Allocation on device 0 would exceed allowed memory."),
        (
            "OutOfMemoryError",
            "HIP out of memory. Tried to allocate 3.31 GiB. GPU 0 has a total capacity of 128.00 "
            "GiB of which 780.24 MiB is free.",
        ),
        ("RuntimeError", "CUDA out of memory. Tried to allocate 2.00 GiB (GPU 0; 11.17 GiB total)"),
        ("RuntimeError", "XPU out of memory. Tried to allocate 1.71 GiB (GPU 0; 15.56 GiB total)"),
        ("RuntimeError", "MUSA out of memory. Tried to allocate 1.00 GiB (GPU 0; 8.00 GiB total)"),
        (
            "RuntimeError",
            "MPS backend out of memory (MPS allocated: 9.57 GiB, other allocations: 17.35 GiB, max "
            "allowed: 27.20 GiB). Tried to allocate 256 bytes on shared pool. Use "
            "PYTORCH_MPS_HIGH_WATERMARK_RATIO=0.0 to disable upper limit for memory allocations "
            "(may cause system failure).",
        ),
        ("RuntimeError", "Invalid buffer size: 19.45 GB"),
        (
            "RuntimeError",
            "Current platform can NOT allocate memory block with size larger than 4GB! Tried to "
            "allocate 6.85 GiB (GPU  0; 15.56 GiB total capacity)",
        ),
        (
            "RuntimeError",
            "Native API failed. Native API returns: 39 (UR_RESULT_ERROR_OUT_OF_DEVICE_MEMORY)",
        ),
        ("AcceleratorError", f"CUDA error: out of memory{DEBUG}"),
        ("RuntimeError", f"HIP error: out of memory{DEBUG}"),
        ("RuntimeError", "CUDA driver error: out of memory"),
        ("RuntimeError", "cuda runtime error (2) : out of memory at THCStorage.cu:58"),
        ("RuntimeError", "Triton Error [CUDA]: out of memory"),
        (
            "RuntimeError",
            "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
        ),
        (
            "RuntimeError",
            "CUDA error: CUBLAS_STATUS_NOT_INITIALIZED when calling `cublasCreate(handle)`",
        ),
        ("RuntimeError", "cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
        ("RuntimeError", "cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED"),
        ("RuntimeError", "cuDNN error: CUDNN_STATUS_NOT_INITIALIZED"),
        ("RuntimeError", "cuFFT error: CUFFT_ALLOC_FAILED"),
        (
            "RuntimeError",
            "cusolver error: CUSOLVER_STATUS_INTERNAL_ERROR, when calling "
            "`cusolverDnCreate(handle)`",
        ),
        (
            "RuntimeError",
            "[enforce fail at alloc_cpu.cpp:75] err == 0. DefaultCPUAllocator: can't allocate "
            "memory: you tried to allocate 132426121216 bytes. Error code 12 (Cannot allocate "
            "memory)",
        ),
        (
            "RuntimeError",
            "[enforce fail at ..\\c10\\core\\impl\\alloc_cpu.cpp:72] data. DefaultCPUAllocator: "
            "not enough memory: you tried to allocate 26214400 bytes.",
        ),
        ("RuntimeError", "std::bad_alloc"),
    ],
    "jax": [
        ("JaxRuntimeError", "RESOURCE_EXHAUSTED: Out of memory allocating 281474976710656 bytes."),
        (
            "JaxRuntimeError",
            "RESOURCE_EXHAUSTED: Failed to allocate request for 176.00MiB (184549376B) on device "
            "ordinal 0",
        ),
        (
            "ValueError",
            "RESOURCE_EXHAUSTED: Error allocating device buffer: Attempting to allocate 8.00M. "
            "That was not possible. There are 6.43M free.; (0x0x1_HBM0)",
        ),
        (
            "ValueError",
            "RESOURCE_EXHAUSTED: Underlying backend ran out of memory trying to instantiate "
            "command buffer with 122 (total of 23 alive graphs in the process).",
        ),
        ("JaxRuntimeError", "INTERNAL: Failed to allocate 98697216 bytes for new constant"),
        (
            "JaxRuntimeError",
            "INTERNAL: Failed to load in-memory CUBIN: CUDA_ERROR_OUT_OF_MEMORY: out of memory",
        ),
        ("JaxRuntimeError", "INTERNAL: CUBLAS_STATUS_ALLOC_FAILED"),
        ("JaxRuntimeError", "INTERNAL: failed to create cublas handle"),
        (
            "JaxRuntimeError",
            "INTERNAL: jaxlib/gpu/solver_kernels.cc:45: operation gpusolverDnCreate(&handle) "
            "failed: cuSolver internal error",
        ),
        ("JaxRuntimeError", "INTERNAL: CUSOLVER_STATUS_ALLOC_FAILED"),
        (
            "JaxRuntimeError",
            "INTERNAL: Attempting to perform BLAS operation using StreamExecutor without BLAS "
            "support",
        ),
        (
            "JaxRuntimeError",
            "RESOURCE_EXHAUSTED: XLA:TPU compile permanent error. Ran out of memory in memory "
            "space hbm. Used 20.34G of 15.48G hbm.",
        ),
    ],
    "tensorflow": [
        ("ResourceExhaustedError", "failed to allocate memory [Op:AddV2]"),
        (
            "ResourceExhaustedError",
            "OOM when allocating tensor with shape[256,832,7,7] and type float on "
            "/job:localhost/replica:0/task:0/device:GPU:0 by allocator GPU_0_bfc",
        ),
        ("ResourceExhaustedError", "MemoryError: Unable to allocate 735. MiB for an array"),
        (
            "InternalError",
            "RESOURCE_EXHAUSTED: Out of memory while trying to allocate 68852648264 bytes.\n"
            "\t [[{{node StatefulPartitionedCall}}]]",
        ),
        ("InternalError", "Out of memory while trying to allocate 68852648264 bytes."),
        (
            "InternalError",
            "Failed to load in-memory CUBIN: CUDA_ERROR_OUT_OF_MEMORY: out of memory\n"
            "\t [[{{node StatefulPartitionedCall}}]] [Op:__inference_train_function_50056]",
        ),
        (
            "InternalError",
            "Failed copying input tensor from /job:localhost/replica:0/task:0/device:CPU:0 to "
            "/job:localhost/replica:0/task:0/device:GPU:0 in order to run _EagerConst: Dst tensor "
            "is not initialized.",
        ),
        ("InternalError", "failed to create cublas handle: CUBLAS_STATUS_ALLOC_FAILED"),
        (
            "InternalError",
            "Attempting to perform BLAS operation using StreamExecutor without BLAS support "
            "[Op:MatMul]",
        ),
        ("InternalError", "Could not create cudnn handle: CUDNN_STATUS_INTERNAL_ERROR"),
        (
            "UnknownError",
            "Failed to get convolution algorithm. This is probably because cuDNN failed to "
            "initialize, so try looking to see if a warning log message was printed above.",
        ),
    ],
}

OTHER = {
    "torch": [
        ("RuntimeError", f"CUDA error: an illegal memory access was encountered{DEBUG}"),
        ("AcceleratorError", f"CUDA error: an illegal memory access was encountered{DEBUG}"),
        ("AcceleratorError", f"CUDA error: device-side assert triggered{DEBUG}"),
        (
            "RuntimeError",
            "DataLoader worker (pid 46794) is killed by signal: Bus error. It is possible that "
            "dataloader's workers are out of shared memory. Please try to raise your shared memory "
            "limit.",
        ),
        ("RuntimeError", "unable to open shared memory object </torch_1_2> in read-write mode"),
        (
            "RuntimeError",
            "unable to mmap 128 bytes from file </torch_1>: Cannot allocate memory (12)",
        ),
        ("OSError", "[Errno 24] Too many open files"),
        ("OSError", "[Errno 12] Cannot allocate memory"),
        (
            "RuntimeError",
            "out of resource: shared memory, Required: 131072, Hardware limit: 101376. Reducing "
            "block sizes or `num_stages` may help.",
        ),
        ("RuntimeError", "required rank 4 tensor to use channels_last memory format"),
        (
            "RuntimeError",
            "cannot pin 'torch.cuda.FloatTensor' only dense CPU tensors can be pinned",
        ),
        ("RuntimeError", "Caught RuntimeError in pin memory thread for device 0."),
        (
            "RuntimeError",
            "unsupported operation: some elements of the input tensor and the written-to tensor "
            "refer to a single memory location. Please clone() the tensor first.",
        ),
        ("RuntimeError", "CUDA error: CUBLAS_STATUS_EXECUTION_FAILED when calling `cublasSgemm`"),
        ("RuntimeError", "cuDNN error: CUDNN_STATUS_EXECUTION_FAILED"),
        (
            "RuntimeError",
            "cuDNN error: CUDNN_STATUS_NOT_SUPPORTED. This error may appear if you passed in a "
            "non-contiguous input.",
        ),
        ("RuntimeError", "the replay memory is out of memory slots"),
        ("ValueError", "the task description says: CUDA out of memory"),
    ],
    "jax": [
        ("JaxRuntimeError", "INTERNAL: CUDA_ERROR_ILLEGAL_ADDRESS: an illegal memory access"),
        (
            "JaxRuntimeError",
            "RESOURCE_EXHAUSTED: Shared memory size limit exceeded: requested 147456, available: "
            "101376",
        ),
        (
            "JaxRuntimeError",
            "RESOURCE_EXHAUSTED: Received message larger than max (6000000 vs. 4194304)",
        ),
        (
            "ValueError",
            "RESOURCE_EXHAUSTED: Failed to write to file [OS error 28: ENOSPC No space left on "
            "device]",
        ),
        (
            "ValueError",
            'RESOURCE_EXHAUSTED: Error reading "params/0.0" Failed to read from file [OS error 12: '
            "ENOMEM Cannot allocate memory]",
        ),
        ("ValueError", "Expected a status such as RESOURCE_EXHAUSTED: got OK"),
        ("ValueError", "Memory kinds passed to jax.jit does not match memory kind on the mesh"),
        (
            "JaxRuntimeError",
            "FAILED_PRECONDITION: DNN library initialization failed. Look at the errors above for "
            "more details.",
        ),
        ("JaxRuntimeError", "INVALID_ARGUMENT: executable is built for device CUDA:0"),
    ],
    "tensorflow": [
        ("ResourceExhaustedError", "/data/part-1.tfrecord; Too many open files"),
        ("ResourceExhaustedError", "/tmp/cache.data; No space left on device"),
        ("ResourceExhaustedError", "/home/user/cache.data; Disk quota exceeded"),
        ("ResourceExhaustedError", "Received message larger than max (6000000 vs. 4194304)"),
        ("InternalError", "an illegal memory access was encountered"),
        ("InvalidArgumentError", "Incompatible shapes: [32,8] vs. [32,9]"),
        ("FailedPreconditionError", "DNN library initialization failed."),
        ("UnimplementedError", "DNN library is not found."),
        ("UnknownError", "ValueError: the simulator ran out of memory cells"),
        ("ValueError", "OOM when allocating is what this test is about"),
    ],
}


def made(name, text):
    """Return the error of the active framework, or Python's, that has this name."""
    modules = {"torch": "torch", "jax": "jax.errors", "tensorflow": "tensorflow.errors"}
    cls = getattr(importlib.import_module("builtins"), name, None)
    if cls is None:
        cls = getattr(importlib.import_module(modules[BACKEND]), name)
    is_tensorflow = BACKEND == "tensorflow" and cls.__module__ != "builtins"
    return cls(None, None, text) if is_tensorflow else cls(text)


@pytest.mark.parametrize(("name", "text"), OUT_OF_MEMORY[BACKEND])
def test_what_means_that_memory_ran_out_is_recognised(name, text):
    assert is_out_of_memory(made(name, text))


@pytest.mark.parametrize(("name", "text"), OTHER[BACKEND])
def test_what_only_mentions_memory_is_not(name, text):
    assert not is_out_of_memory(made(name, text))


def raised(error, cause=None):
    """Return `error` as it is caught, raised from `cause`."""
    try:
        raise error from cause
    except Exception as caught:
        return caught


def test_causes_are_looked_at():
    inner = raised(RuntimeError("backward failed"), MemoryError())
    assert is_out_of_memory(raised(ValueError("no batch"), inner))
    assert not is_out_of_memory(raised(ValueError("no batch"), KeyError("x")))
    assert not is_out_of_memory(None)


def test_causes_may_be_a_circle():
    first, second = ValueError("first"), ValueError("second")
    first.__cause__, second.__cause__ = second, first
    assert not is_out_of_memory(first)


def test_an_error_in_the_handler_of_another_is_one_of_its_own():
    try:
        raise MemoryError
    except MemoryError:
        error = raised(ValueError("shapes differ"))
    assert isinstance(error.__context__, MemoryError)
    assert not is_out_of_memory(error)


@pytest.mark.parametrize("cause", [None, MemoryError()])
def test_what_keras_wraps_is_looked_at(cause):
    """Keras drops causes, and makes a `RuntimeError` of NumPy's own `MemoryError`."""

    class Fails(keras.layers.Layer):
        def call(self, inputs):
            if cause is not None:
                raise ValueError("no room") from cause
            np.empty(1 << 50)

    with pytest.raises((RuntimeError, ValueError)) as caught:
        Fails()(np.zeros((1, 1), "float32"))
    assert not isinstance(caught.value, MemoryError)
    assert caught.value.__cause__ is None
    assert is_out_of_memory(caught.value)


def test_the_real_error_of_an_allocation():
    with pytest.raises(Exception, match=r"OOM|Out of memory|allocate memory") as caught:
        keras.ops.convert_to_numpy(keras.ops.zeros((1 << 46,)) + 1)
    assert is_out_of_memory(caught.value)
