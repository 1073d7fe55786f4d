"""Which layers each step of a model runs again: as `rematerialize=` says, or as a search asks."""

from typing import Any

from tensorflow_ranger.training.rematerialization.rematerialization import Rematerialization


class RematerializationChoice:
    """Makes the `Rematerialization` of each step.

    Args:
        model: The Keras model.
        rematerialize: True, False, a number of segments, or None for what a search asks for: see
            `microbatch`.
    """

    def __init__(self, model, rematerialize):
        self._model = model
        self._rematerialize = rematerialize
        self._chain: Any = None  # a `Rematerialization` that has learned the model's layers
        self._by_segments = {}

    @property
    def is_open(self):
        """Whether a search may ask for segments."""
        return self._rematerialize is None

    def repeat_all(self):
        """Let the backward pass run as many segments again as need the least memory."""
        self._rematerialize = True

    def choices(self, prepare):
        """Return the `Segments` that a search may ask for.

        Args:
            prepare: Function that prepares a step with a `Rematerialization`.
        """
        if self._chain is None:
            self._chain = Rematerialization(self._model)
            prepare(self._chain)
        return self._chain.choices()

    def of(self, segments):
        """Return the `Rematerialization` of a step, or None.

        Args:
            segments: `Segments` that a search asks for, or None.
        """
        if self.is_open and segments is not None:
            if segments not in self._by_segments:
                self._by_segments[segments] = self._chain.with_segments(segments)
            return self._by_segments[segments]
        if self._rematerialize in (None, False):
            return None
        count = None if self._rematerialize is True else int(self._rematerialize)
        return Rematerialization(self._model, count)
