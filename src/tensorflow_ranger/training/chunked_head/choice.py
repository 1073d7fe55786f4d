"""Whether a model's logits are computed in chunks: as `head_chunks=` says, or as memory asks."""

from tensorflow_ranger.training.chunked_head.finding import found_head
from tensorflow_ranger.training.task_losses import resolved_tasks


class HeadChoice:
    """Makes the `ChunkedHead` of each step.

    Args:
        model: The Keras model.
        loss: "shares", "whole", or None to decide: see `microbatch`.
        padding: Number that stands behind the end of each sample, or None.
        head_chunks: In how many chunks the logits of a micro-batch are computed, or None to decide.
    """

    def __init__(self, model, loss, padding, head_chunks):
        self._model = model
        self._loss = loss
        self._padding = padding
        self._count = head_chunks
        self._is_forced = head_chunks is not None

    def of(self, data):
        """Return the `ChunkedHead` of a step, or None; and why the head stays whole, or None.

        Args:
            data: Tuple ``(x, y, sample_weight)`` of a batch.

        Raises:
            ValueError: Chunks were asked for, and the head cannot be divided.
        """
        if self._count == 1:
            return None, None
        head, reason = self._found(data, self._is_forced)
        if self._count is not None and head is None:
            raise ValueError(
                f"head_chunks={self._count} divides the logits of a micro-batch, and they must "
                f"stay whole, for {reason}. Leave head_chunks out."
            )
        return head, reason

    def divide(self, data):
        """Divide heads from now on whatever their size; return whether that is possible."""
        if self._count is None and not self._is_forced:
            head, _ = self._found(data, is_forced=True)
            self._is_forced = head is not None
            return self._is_forced
        return False

    def _found(self, data, is_forced):
        return found_head(
            self._model,
            data,
            tasks=resolved_tasks(self._model),
            loss=self._loss,
            padding=self._padding,
            count=self._count,
            is_forced=is_forced,
        )
