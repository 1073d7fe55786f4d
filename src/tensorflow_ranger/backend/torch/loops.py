"""PyTorch: a loop over the micro-batches of a batch, in Python."""

from tensorflow_ranger.backend.batches import count, cut


def fold(body, state, batch, size, start=0, stops=()):
    """Return ``state = body(state, micro_batch)`` after the last micro-batch of `batch`.

    Args:
        body: Function ``(state, micro_batch) -> state``.
        state: What the first micro-batch is given.
        batch: Nested tensors, or None, with the samples along their leading axes.
        size: Samples of a micro-batch. A remainder smaller than that comes last.
        start: The sample to begin with.
        stops: Samples that no micro-batch reaches across.
    """
    stops = sorted({*stops, count(batch)})
    while start < count(batch):
        end = min(start + size, next(stop for stop in stops if stop > start))
        state = body(state, cut(batch, start, end - start))
        start = end
    return state
