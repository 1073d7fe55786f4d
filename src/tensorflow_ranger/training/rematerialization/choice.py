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
        self._all: Any = None  # the `Rematerialization` of steps for which no search asks
        self._chain: Any = None  # a `Rematerialization` that has learned the model's layers
        self._by_segments = {}

    @property
    def searched(self):
        """Which segments a search may ask for: see `SearchedSize`."""
        return {None: "more", True: "fewer"}.get(self._rematerialize)

    def repeat_all(self):
        """Let the backward pass run as many segments again as need the least memory."""
        self._rematerialize = True
        self.forget()

    def forget(self):
        """Learn the layers anew, also those of which a search knows segments."""
        self.learn_again()
        self._chain, self._by_segments = None, {}

    def learn_again(self):
        """Learn the layers anew for steps that are made anew: a model may have gained some."""
        self._all = None

    def choices(self, prepare):
        """Return the `Segments` that a search may ask for.

        Args:
            prepare: Function that prepares a step with a `Rematerialization`.
        """
        if self._chain is None:
            self._chain = self._all
        if self._chain is None:
            self._chain = Rematerialization(self._model)
            prepare(self._chain)
        return self._chain.choices()

    def of(self, segments):
        """Return the `Rematerialization` of a step, or None.

        Args:
            segments: `Segments` that a search asks for, or None.
        """
        if segments is not None and self.searched is not None:
            if segments not in self._by_segments:
                self._by_segments[segments] = self._chain.with_segments(segments)
            return self._by_segments[segments]
        if self._rematerialize in (None, False):
            return None
        if self._all is None:
            count = None if self._rematerialize is True else int(self._rematerialize)
            self._all = Rematerialization(self._model, count)
        return self._all
