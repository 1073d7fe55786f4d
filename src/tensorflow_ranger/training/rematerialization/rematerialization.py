"""Which parts of a model's forward pass the backward pass runs again, decided once per model."""

import itertools

from tensorflow_ranger.backend import keras_internals
from tensorflow_ranger.batch_size.plan import format_bytes
from tensorflow_ranger.rules import segments
from tensorflow_ranger.training.rematerialization.caller import SegmentCaller
from tensorflow_ranger.training.rematerialization.chain import ChainMeasurer


class Rematerialization:
    """Divides the layers of a model into segments, of which all but the last are run again.

    Args:
        model: A built Keras model.
        count: Number of segments, or None for the number that needs the least memory.
    """

    def __init__(self, model, count=None):
        self._model = model
        self._count = count
        self._caller = None
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
        if self._caller is not None:
            return
        measurer = ChainMeasurer(self._model, head)
        with keras_internals.calling_by(measurer):
            run()
        chain = [link for link in measurer.links if link.may_replay]
        pairs = itertools.pairwise(chain)
        joins = [*(_may_join(link, following) for link, following in pairs), False]
        kept = [link.kept for link in chain]
        handed_on = [link.handed_on for link in chain]
        found = segments.divided(kept, handed_on, joins, self._count)
        replayed = [chain[start:stop] for start, stop in found[:-1]]
        self._caller = _caller_of(replayed, head)
        self.summary = _summary(measurer.links, found, kept, handed_on, samples)

    def replaying(self):
        """Return a context in which calls of the model are run in segments."""
        return keras_internals.calling_by(self._caller)

    def freeing(self):
        """Return a context in which calls of the model hold on to no tensor longer than needed."""
        return keras_internals.calling_by(SegmentCaller({}, ()))


def _may_join(link, following):
    is_next = link.place is not None and following.place == link.place + 1
    return is_next and link.key == following.key


def _caller_of(replayed, head):
    graphs, layers = {}, set()
    for links in replayed:
        first, last = links[0], links[-1]
        if first.place is None:
            layers.add(first.key)
        else:
            graphs.setdefault(first.key, []).append((first.place, last.place + 1))
    return SegmentCaller(graphs, layers, head)


def _summary(links, found, kept, handed_on, samples):
    if len(found) < 2:
        return "Nothing is run again in the backward pass: the model has one segment."
    whole = sum(link.kept for link in links)
    fixed = whole - sum(kept)
    least = fixed + segments.memory_of(found, kept, handed_on)
    last = found[-1][1] - found[-1][0]
    return (
        f"The backward pass runs {len(kept) - last} of {len(links)} layers' calls again, in "
        f"{len(found) - 1} segments: it keeps about {format_bytes(least // samples)} per sample in "
        f"place of {format_bytes(whole // samples)}."
    )
