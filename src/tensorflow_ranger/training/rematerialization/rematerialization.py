"""Which parts of a model's forward pass the backward pass runs again, decided once per model."""

import copy
import itertools

from tensorflow_ranger.backend import keras_internals
from tensorflow_ranger.batch_size.plan import format_bytes
from tensorflow_ranger.rules import segments
from tensorflow_ranger.training.rematerialization.caller import SegmentCaller
from tensorflow_ranger.training.rematerialization.chain import ChainMeasurer, Link


class Rematerialization:
    """Divides the layers of a model into segments, of which all but the last are run again.

    Args:
        model: A built Keras model.
        count: Number of segments, or None for the number that needs the least memory.
    """

    def __init__(self, model, count=None):
        self._model = model
        self._count = count
        self._links: list[Link] = []
        self._chain: list[Link] = []  # those that may be run again
        self._samples = 1
        self._graphs = {}
        self._layers = set()
        self.summary: str | None = None

    @staticmethod
    def require_no_scope(model):
        """Check that Keras itself runs no layer of `model` again.

        Raises:
            ValueError: Layers were made under `keras.RematScope`. Its replay draws other random
                numbers on PyTorch and moves the state of layers twice.
        """
        made = [
            layer.name
            for layer in keras_internals.layers_of(model)
            if keras_internals.made_under_remat_scope(layer)
        ]
        if made:
            raise ValueError(
                f"microbatch trains no layers that were made under keras.RematScope, got {made}: "
                "Keras' replay draws other random numbers and moves batch statistics twice. Make "
                "the model outside of that scope and call microbatch(model, size, "
                "rematerialize=True)."
            )

    def learn(self, run, samples, head=None):
        """Find the segments.

        Args:
            run: Function without arguments that calls the model in a `CallScope`.
            samples: Samples that it calls the model on.
            head: `HeadLayers` that calls of the model leave out, or None.
        """
        if self._links:
            return
        measurer = ChainMeasurer(self._model, head)
        with keras_internals.calling_by(measurer):
            run()
        self._links, self._samples = measurer.links, samples
        self._chain = [link for link in measurer.links if link.may_replay]
        if self._count is None:
            self.take(self.choices()[-1])
        else:
            self.take(self._per_sample(segments.in_number(*self._bytes(), self._count)))

    def choices(self):
        """Return the `Segments` that `with_segments` takes: see `divisions`.

        Their memory is that of a sample, with what layers keep that are never run again.
        """
        return [self._per_sample(each) for each in segments.divisions(*self._bytes())]

    def with_segments(self, choice):
        """Return a `Rematerialization` that runs the segments of one of the `choices` again."""
        other = copy.copy(self)
        other.take(choice)
        return other

    def take(self, found):
        """Run these `Segments` again from now on."""
        self._graphs, self._layers = _places_of(
            [self._chain[start:stop] for start, stop in found.pairs]
        )
        self.summary = self._summary(found)

    def _bytes(self):
        chain = self._chain
        pairs = itertools.pairwise(chain)
        joins = [*(_may_join(link, following) for link, following in pairs), False]
        return [link.kept for link in chain], [link.handed_on for link in chain], joins

    def _per_sample(self, found):
        others = sum(link.kept for link in self._links if not link.may_replay)
        return found._replace(memory=(found.memory + others) / self._samples)

    def _summary(self, found):
        if not found.pairs:
            return "Nothing is run again in the backward pass: the model has one segment."
        whole = sum(link.kept for link in self._links) // self._samples
        return (
            f"The backward pass runs {found.pairs[-1][1]} of {len(self._links)} layers' calls "
            f"again, in {len(found.pairs)} segments: it keeps about "
            f"{format_bytes(int(found.memory))} per sample in place of {format_bytes(whole)}."
        )

    def replaying(self, head=None):
        """Return a context in which calls of the model are run in segments.

        Args:
            head: `HeadLayers` that the calls leave out, or None.
        """
        return keras_internals.calling_by(SegmentCaller(self._graphs, self._layers, head))


def _may_join(link, following):
    is_next = link.place is not None and following.place == link.place + 1
    return is_next and link.key == following.key


def _places_of(replayed):
    graphs, layers = {}, set()
    for links in replayed:
        first, last = links[0], links[-1]
        if first.place is None:
            layers.add(first.key)
        else:
            graphs.setdefault(first.key, []).append((first.place, last.place + 1))
    return graphs, layers
