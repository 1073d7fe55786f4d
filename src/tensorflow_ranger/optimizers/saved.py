"""What of a `RangerOptimizer` its config and its checkpoints hold."""

import warnings
from typing import Any

import keras

from tensorflow_ranger.checks import arguments
from tensorflow_ranger.optimizers import window_state
from tensorflow_ranger.optimizers.replicated import ReplicatedOptimizer

# Arguments that a config may hold as configs of their own.
_SERIALIZED = ("inner", "learning_rate", "accumulation_steps")


class SavedOptimizer(ReplicatedOptimizer):
    """The part of `RangerOptimizer` that knows of files."""

    _steps: Any
    _window: Any
    _gauges: Any
    _slow: Any

    def get_config(self):
        """Return the arguments that make an optimizer like this one, without its state."""
        return {
            "name": self.name,
            "inner": keras.saving.serialize_keras_object(self.inner_optimizer),
            "loss_scale_factor": self.loss_scale_factor,
            **self._steps.config,
            "reduction": self.reduction,
            "skip_nonfinite": self.skip_nonfinite,
            "accumulator_dtype": self.accumulator_dtype,
            "lookahead": arguments.config_of(self.lookahead),
            "adaptive_clipping": arguments.config_of(self.adaptive_clipping),
            "centralize": self.centralize,
            "evaluate_slow_weights": self.evaluate_slow_weights,
        }

    @classmethod
    def from_config(cls, config, custom_objects=None):
        """Return the optimizer that `get_config` describes.

        Args:
            config: Dict of arguments. Those that are left out have their defaults.
            custom_objects: Dict from names to classes and functions that the config refers to.

        Raises:
            ValueError: As the constructor does.
            TypeError: As the constructor does.
        """
        config = {
            name: keras.saving.deserialize_keras_object(value, custom_objects=custom_objects)
            if name in _SERIALIZED and isinstance(value, dict)
            else value
            for name, value in config.items()
        }
        inner = config.get("inner")
        if isinstance(inner, keras.optimizers.Optimizer):
            # The wrapper holds the scale; its constructor takes it from the inner optimizer.
            inner.loss_scale_factor = config.pop("loss_scale_factor", None)
        return cls(**config)

    def save_own_variables(self, store):
        """Save the inner optimizer as Keras saves it alone, and the window beside it."""
        self.inner_optimizer.save_own_variables(store)
        window_state.save(store, self._window_state())

    def load_own_variables(self, store):
        """Load what `save_own_variables` saved, or a plain optimizer's checkpoint.

        A plain checkpoint becomes the inner optimizer's state, and the window starts empty. As
        Keras does with the learning rate, `accumulation_steps` becomes what was saved.

        Args:
            store: Mapping from names to arrays.

        Raises:
            ValueError: The checkpoint lacks a part of the window.
        """
        names = set(store.keys())
        inner_names = {name for name in names if name.isdigit()}
        if self.built and names - inner_names == {"accumulation_steps"}:
            return  # saved before anything was trained, and the config has all there was
        self._load_inner({name: store[name] for name in inner_names})
        if names == inner_names:
            if self.built:
                self._window.reset()
            if self._gauges.noise is not None:
                self._gauges.noise.reset()
            if self._slow is not None:
                self._slow.reset(self._trained_variables)
            return
        if "noise_averages" in names:
            if self._gauges.noise is None:
                self.measure_noise()
        elif self._gauges.noise is not None:
            self._gauges.noise.miss_window()
        window_state.load(store, self._window_state(names), self.name)
        self._reported_skips = self.skipped_micro_batches

    def _load_inner(self, store):
        inner = self.inner_optimizer
        if hasattr(inner, "optimizers") and not _fits(store, inner.variables):
            warnings.warn(
                f"The momentum and the other state of the {type(inner).__name__} inside "
                f"{self.name!r} could not be loaded: the file holds {len(store)} arrays, which do "
                f"not fit its {len(inner.variables)} variables. It chooses optimizers by the paths "
                "of variables, and while Keras loads a .keras file those lack the model's name. "
                "Use patterns that match both, such as '.*bias', or build the optimizer and call "
                "model.load_weights.",
                stacklevel=3,
            )
        else:
            inner.load_own_variables(store)

    def _window_state(self, names=("noise_averages",)):
        state = {"accumulation_steps": self._steps.variable}
        if self.built:
            state.update(self._window.state)
            if self._gauges.noise is not None and "noise_averages" in names:
                state.update(self._gauges.noise.state)
        if self._slow is not None:
            state.update({f"slow_{i}": slow for i, slow in enumerate(self._slow.variables)})
        return state


def _fits(store, variables):
    shapes = [tuple(variable.shape) for variable in variables]
    return len(store) == len(shapes) and all(
        tuple(store[str(i)].shape) == shape for i, shape in enumerate(shapes)
    )
