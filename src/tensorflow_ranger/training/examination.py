"""Reads from a comparison of some samples, whole and in halves, what a model's parts are."""

import warnings

import keras
import numpy as np

from tensorflow_ranger.backend import arrays, keras_internals
from tensorflow_ranger.backend.batches import count, cut
from tensorflow_ranger.backend.out_of_memory import is_out_of_memory
from tensorflow_ranger.training import probe
from tensorflow_ranger.training.layer_state import SUM, UNKNOWN

# What numbers of each dtype are apart at 1.
_RESOLUTIONS = {"bfloat16": 2**-7, "float16": 2**-10, "float32": 2**-23, "float64": 2**-52}


class Examination:
    """Decides what abstract shapes leave open, once per compiled step.

    Args:
        state: `LayerState`; of its unclear variables the kind is found.
        shares: `CompiledLosses`; of its questions it is found whether they are means or sums.
        metrics: `MetricsOfBatch`; of its unclear metrics it is found whether they add up.
        is_random: Whether layers draw numbers that are not functions of a sample's place.
    """

    def __init__(self, state, shares, metrics, is_random):
        self._state = state
        self._compiled_losses = shares
        self._metrics = metrics
        self._is_random = is_random
        self.is_settled = True

    def run(self, run, data, size):
        """Compare the first samples, whole and in two halves.

        Args:
            run: Function that returns the `Looks` at samples, as arrays.
            data: Tuple ``(x, y, sample_weight)`` of the batch, or None if no samples can be cut.
            size: Samples per micro-batch.

        Returns:
            List of the names of what is neither a mean nor a sum over samples.
        """
        if data is None:
            return self._warn_unmeasured("several processes would each measure for themselves")
        samples = min(count(data), 2 * min(size, probe.SAMPLES))
        if samples < 2:
            self.is_settled = False  # a later batch may have more
            return []
        some = cut(data, 0, samples)
        try:
            looks = run(some)
        except Exception as error:
            if is_out_of_memory(error):
                raise
            guessed = self._state.assume_rows(count(data))
            try:
                looks = run(some) if guessed else None
            except Exception:
                looks = None
            if looks is None:
                self._state.forget_rows(guessed)
                return self._warn_unmeasured(f"{type(error).__name__}: {error}")
        looks = probe.Looks(*(probe.Look(*map(_arrays, look)) for look in looks))
        return self._learn(looks, samples // 2 / samples)

    def _learn(self, looks, fraction):
        tolerance = tolerance_of(self._compiled_losses.model)
        is_noisy = self._is_random or self._state.has_normalizations
        found = []
        for place in self._state.unclear:
            begun, *after = (look.state[place] for look in looks.real)
            kind, decay, adds, is_certain = probe.kind_of_state(
                begun, after, fraction, tolerance, is_noisy
            )
            self._state.kinds[place] = kind
            self._state.decays[place] = decay
            self._state.adds[place] = adds
            found.append((f"the state {self._state.name(place)}", kind, is_certain))
        answers = (looks.whole.answers, looks.first.answers, looks.second.answers)
        sums = []
        shares = self._compiled_losses
        for name, follows, is_known, whole, first, second in zip(
            shares.questions, shares.follow_layers, shares.known, *answers, strict=True
        ):
            if is_known:
                sums.append(probe.is_nearer_to_sum(whole, first, second, fraction))
                continue
            kind, is_certain = probe.kind_of_number(
                whole, first, second, fraction, tolerance, is_noisy and follows
            )
            sums.append(kind == SUM)
            found.append((name, kind, is_certain))
        self._compiled_losses.learn(sums)
        self._compiled_losses.suspect(
            [place for i, place in enumerate(shares.suspects) if _samples_meet(looks, i, tolerance)]
        )
        pairs = [(looks.whole, looks.continued), (looks.among_invented, looks.invented)]
        self._metrics.learn([(one.metrics, other.metrics) for one, other in pairs], tolerance)
        passes = (looks.begun, looks.whole, looks.first, looks.continued)
        self._metrics.learn_own([look.metrics for look in passes], fraction)
        return _warned(found)

    def _warn_unmeasured(self, why):
        names = [f"the state {self._state.name(place)}" for place in self._state.unclear]
        names += self._compiled_losses.questions
        self._metrics.assume_of_batch()
        self._compiled_losses.suspect(self._compiled_losses.suspects, "may meet")  # right for any
        if names:
            warnings.warn(
                f"In micro-batches {'; '.join(names)} is taken for a mean over samples: it could "
                f"not be compared on a few samples, whole and in halves ({why}). Compare with "
                "training without microbatch.",
                stacklevel=2,
            )
        return names


def _samples_meet(looks, i, tolerance):
    """Return whether what a loss makes of some samples depends on those beside them."""
    whole, first, second = looks.whole.values[i], looks.first.values[i], looks.second.values[i]
    if probe.samples_meet(whole, first, second, tolerance):
        return True
    invented = looks.among_invented.values[i : i + 1]
    return any(probe.samples_meet(values, first, first[:0], tolerance) for values in invented)


def _warned(found):
    """Warn of what is unknown or uncertain; return the names of what is unknown."""
    unknown = [name for name, kind, _ in found if kind == UNKNOWN]
    if unknown:
        warnings.warn(
            f"In micro-batches {'; '.join(unknown)} is not what the whole batch gives: it is "
            "neither a mean nor a sum over samples, but a function of the batch. The mean of the "
            "micro-batches, weighted by samples, is taken in its place. To train as the whole "
            "batch does, let it return one number per sample, or train without microbatch.",
            stacklevel=2,
        )
    uncertain = [f"{name} for a {kind}" for name, kind, is_certain in found if not is_certain]
    if uncertain:
        warnings.warn(
            f"In micro-batches {'; '.join(uncertain)} over samples is what was taken: on the first "
            "samples it was zero or did not move, or random numbers or batch statistics hide "
            "whether that is exact.",
            stacklevel=2,
        )
    return unknown


def tolerance_of(model):
    """Return the relative difference between a few samples and their parts that is rounding."""
    return min(0.05, max(170 * resolution_of(model), 1e-10))


def resolution_of(model):
    """Return the resolution of the coarsest dtype that a model computes in."""
    dtypes = {keras.backend.standardize_dtype(v.dtype) for v in model.trainable_variables}
    dtypes |= {layer.compute_dtype for layer in keras_internals.layers_of(model)}
    if keras.config.backend() == "torch":  # Keras rounds some operations through float32 there
        dtypes.add("float32")
    return max(map(resolution, dtypes), default=resolution("float32"))


def resolution(dtype):
    """Return what numbers of `dtype` are apart at 1."""
    # A dtype that is switched off is computed in float32, as any that is unknown here.
    known = dtype in _RESOLUTIONS and arrays.supports_dtype(dtype)
    return _RESOLUTIONS[dtype if known else "float32"]


def _arrays(values):
    arrays = [np.asarray(keras.ops.convert_to_numpy(value)) for value in values]
    # NumPy has no bfloat16 of its own.
    return [a.astype("float32") if a.dtype.name == "bfloat16" else a for a in arrays]
