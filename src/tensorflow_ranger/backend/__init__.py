"""The only door to the frameworks.

The folders `tensorflow`, `jax` and `torch` hold the same modules with the same functions. Only the
folder of the active backend is imported, so a JAX or PyTorch user never pays for TensorFlow.

- `arrays`: arithmetic, random state, and memory, on tensors and variables.
- `draws`: random numbers by their place in a batch.
- `replicas`: sums over the replicas of a distributed run.
- `loops`: the loop over the micro-batches of a batch.
- `gradients`: sums of gradients for training loops of a user's own.
- `added_gradients`: the gradients of a micro-batch of `microbatch`, added to those of its batch.
- `replay`: functions that a backward pass runs again, so that it keeps less.
- `chunks`: sums over chunks of rows, of whose gradients only the sums are kept.
- `steps`: the training step of `microbatch`.
"""

import importlib

import keras

NAMES = ("tensorflow", "jax", "torch")

if keras.config.backend() not in NAMES:
    raise ImportError(
        f"tensorflow_ranger runs on the Keras backends {', '.join(NAMES)}: "
        f"got {keras.config.backend()!r}. Set KERAS_BACKEND to one of them before importing Keras."
    )


def _of_active_backend(module):
    return importlib.import_module(f"{__name__}.{keras.config.backend()}.{module}")


arrays = _of_active_backend("arrays")
draws = _of_active_backend("draws")
replicas = _of_active_backend("replicas")
loops = _of_active_backend("loops")
gradients = _of_active_backend("gradients")
added_gradients = _of_active_backend("added_gradients")
replay = _of_active_backend("replay")
chunks = _of_active_backend("chunks")
steps = _of_active_backend("steps")
