"""JAX: a batch on the replicas of a `keras.distribution`, an uneven one, too."""

import math
from typing import Any, NamedTuple

import jax
import keras
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from tensorflow_ranger.backend import keras_internals
from tensorflow_ranger.backend.batches import count, cut, first, mapped
from tensorflow_ranger.backend.jax.one_device_step import JaxStep
from tensorflow_ranger.backend.jax.replicas import has_several
from tensorflow_ranger.backend.jax.shard_axis import over


class Shards(NamedTuple):
    """A batch as the replicas are given it. Either half may be None."""

    even: Any  #: Global arrays; each replica has as many of their rows.
    rest: Any  #: Global arrays; all replicas of a process have the same rows.
    weight: float  #: Weight of a row of `rest`: 1 / number of replicas that compute it.


class Mesh:
    """The devices of the current distribution whose gradients are summed."""

    def __init__(self):
        distribution = keras.distribution.distribution()
        self.axis = distribution.batch_dim_name
        self.mesh = distribution.device_mesh.backend_mesh
        self.replicas = distribution.num_model_replicas
        self._sharding = NamedSharding(self.mesh, PartitionSpec(self.axis))

    @property
    def replicas_here(self):
        """The replicas that this process feeds."""
        return max(1, self.replicas // jax.process_count())

    def shards(self, data):
        """Return the `Shards` of a batch: global arrays as Keras makes them, or this process's."""
        if _is_global(first(data)):
            return Shards(data, None, 1.0)
        here = self.replicas_here
        end = count(data) // here * here
        even = self._arrays(data, lambda rows: rows[:end]) if end else None
        rest = self._arrays(data, lambda rows: np.concatenate([rows[end:]] * here))
        return Shards(even, rest, 1 / here)

    def rows(self, leaf):
        """Return the samples that `leaf` of a batch gives to a replica at most."""
        return -(-leaf.shape[0] // (self.replicas if _is_global(leaf) else self.replicas_here))

    def batches_here(self, data):
        """Return what each replica of this process has of a batch, as NumPy arrays.

        The rows that all of them run come last.
        """
        data = _here(data)
        each = count(data) // self.replicas_here
        ends = [each * number for number in range(1, self.replicas_here + 1)]
        cuts = zip([0, *ends], [*ends, count(data)], strict=True)
        return [cut(data, start, stop - start) for start, stop in cuts if start < stop]

    def _arrays(self, data, cut):
        def array(leaf):
            rows = leaf.rows if isinstance(leaf, Rows) else leaf
            return jax.make_array_from_process_local_data(self._sharding, cut(rows))

        return mapped(array, data)


class ReplicaStep(JaxStep):
    """Runs a batch as one compiled function whose replicas meet twice: for masses, and for sums.

    The mesh's axis of the batch is ours, within a `shard_map`: each replica loops over its own
    micro-batches, and no sum stands inside the loop. Other axes stay with XLA, which shards what a
    `LayoutMap` says.

    Args:
        phases: `Phases` of the batch.
    """

    def __init__(self, phases):
        super().__init__(phases, "device", True)
        self._mesh = Mesh()
        self._jitted: Any = None
        self._whole = self._run_shards

    def _run_shards(self, state, data, size, rows):
        return self._step(state)(state, *self._mesh.shards(data), size, rows)

    def _is_on_host(self, data, size):
        return False

    def _tables_among(self, seen, state, data, size):
        return []

    def text(self, state, data, size):
        """Return the optimized HLO of the step, in which its collectives can be counted."""
        self.prepare(state, data, size)
        return self._lowered(state, data, size).compile().as_text()

    def _comparable(self, data):
        if jax.process_count() > 1:
            return None
        return _here(data)

    def _held(self, state, data):
        even, rest, _ = self._mesh.shards(data)
        return sum(
            math.prod(array.sharding.shard_shape(array.shape)) * array.dtype.itemsize
            for array in jax.tree.leaves((state, even, rest))
        )

    def _lowered(self, state, data, size):
        return self._step(state).lower(state, *self._mesh.shards(data), size, count(data))

    def _step(self, state):
        if self._jitted is None:
            # A weight stays where it is, whatever XLA would prefer for it.
            shardings = jax.tree.map(lambda value: value.sharding, state)
            self._jitted = jax.jit(
                self._run_on_replicas,
                donate_argnums=0,
                static_argnums=(3, 4, 5),
                out_shardings=(None, shardings),
            )
        return self._jitted

    def _run_on_replicas(self, state, even, rest, weight, size, rows):
        def run(state, even, rest):
            with over(self._mesh.axis, self._mesh.mesh.size > self._mesh.replicas):
                halves = [(half, each) for half, each in ((even, None), (rest, weight)) if half]
                return self._run_parts(state, halves, size, rows)

        spread = PartitionSpec(self._mesh.axis)
        return jax.shard_map(
            run,
            mesh=self._mesh.mesh,
            in_specs=(PartitionSpec(), spread, spread),
            out_specs=PartitionSpec(),
            axis_names={self._mesh.axis},
            check_vma=False,
        )(state, even, rest)


class Rows:
    """Rows of this process that its replicas can't share evenly: only `microbatch` takes them."""

    def __init__(self, rows):
        self.rows = rows = np.asarray(rows)
        self.shape = rows.shape
        self.dtype = rows.dtype
        self.ndim = rows.ndim

    @property
    def __jax_array__(self):
        """Raise: this is what Keras' own compiled steps ask for."""
        raise ValueError(
            f"A batch must give each replica of a process as many samples: got {self.shape[0]} "
            f"samples for {Mesh().replicas_here} replicas. Choose a batch size that is a multiple; "
            "only training with microbatch takes any."
        )


def trainer_overrides(model):
    """Return the methods of Keras' trainer that `model` needs others for, by their names.

    Its iterators hand on the batches that Keras can't shard. One process computes them on every
    replica, but for training by `microbatch`, which shares them out. Several processes have rows
    of their own: only `microbatch` takes those.
    """

    def look_at(iterator):
        if has_several(()):
            keras_internals.hand_on_uneven_batches(iterator, _is_even, _unsharded)

    return keras_internals.before_build(model, look_at)


def _is_even(data):
    return count(data) % Mesh().replicas_here == 0


def _unsharded(data):
    return mapped(np.asarray if jax.process_count() == 1 else Rows, data)


def _here(data):
    """Return the rows of this process as NumPy arrays."""
    return mapped(_rows_here, data)


def _rows_here(leaf):
    if not _is_global(leaf) or leaf.is_fully_addressable:
        return np.asarray(getattr(leaf, "rows", leaf))
    shards = {shard.index[0].start or 0: shard for shard in leaf.addressable_shards}
    return np.concatenate([np.asarray(shards[start].data) for start in sorted(shards)])


def _is_global(leaf):
    return isinstance(leaf, jax.Array)
