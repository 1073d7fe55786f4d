"""PyTorch: a loop over the micro-batches of a batch, in Python."""

from tensorflow_ranger.backend.batches import slices


def fold(body, state, batch, size):
    """Return ``state = body(state, micro_batch)`` after the last micro-batch of `batch`.

    Args:
        body: Function ``(state, micro_batch) -> state``.
        state: What the first micro-batch is given.
        batch: Nested tensors, or None, with the samples along their leading axes.
        size: Samples of a micro-batch. A remainder smaller than that comes last.
    """
    for each in slices(batch, size):
        state = body(state, each.of(batch))
    return state
