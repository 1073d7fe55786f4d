"""A Keras optimizer around another one, which makes the updates."""

import warnings

import keras

from tensorflow_ranger.backend import keras_internals
from tensorflow_ranger.checks import arguments


def _delegated(name):
    """Return a property that reads and writes `name` on the inner optimizer."""

    def read(self):
        return getattr(self.inner_optimizer, name)

    def write(self, value):
        # Keras' own constructor assigns its defaults before there is an inner optimizer.
        if "inner_optimizer" in vars(self):
            setattr(self.inner_optimizer, name, value)

    return property(read, write, doc=f"`{name}` of the inner optimizer.")


class OptimizerWrapper(keras_internals.ShowsInnerAverages):
    """Keeps what counts updates in the inner optimizer, and shows it as its own.

    Args:
        inner_optimizer: `keras.optimizers.Optimizer` that makes the updates.
        name: Name of the optimizer.
    """

    def __init__(self, inner_optimizer, name):
        super().__init__(learning_rate=0.0, name=name)
        self.inner_optimizer = inner_optimizer
        # The loss is scaled and unscaled out here, so the inner optimizer must not do it again.
        self.loss_scale_factor = inner_optimizer.loss_scale_factor
        inner_optimizer.loss_scale_factor = None

    weight_decay = _delegated("weight_decay")
    clipnorm = _delegated("clipnorm")
    global_clipnorm = _delegated("global_clipnorm")
    clipvalue = _delegated("clipvalue")
    use_ema = _delegated("use_ema")
    ema_momentum = _delegated("ema_momentum")
    ema_overwrite_frequency = _delegated("ema_overwrite_frequency")

    @property
    def learning_rate(self):
        """The learning rate of the next update, from the inner optimizer."""
        return self.inner_optimizer.learning_rate

    @learning_rate.setter
    def learning_rate(self, learning_rate):
        self.inner_optimizer.learning_rate = learning_rate

    @property
    def optimizers(self):
        """The inner optimizer's own ones, if it is a `MultiOptimizer`."""
        return self.inner_optimizer.optimizers

    @property
    def iterations(self):
        """The number of updates made, from the inner optimizer."""
        return self.inner_optimizer.iterations

    @property
    def variables(self):
        """The wrapper's own variables, then the inner optimizer's."""
        # Keras gives every optimizer two variables, which here are the inner optimizer's.
        return [*keras_internals.own_variables(self), *self.inner_optimizer.variables]

    @property
    def _trained_variables(self):
        """The variables that the optimizer was built with, an empty list before."""
        return keras_internals.trained_variables(self)

    def build(self, variables):
        """Create the inner optimizer's variables for `variables`."""
        keras_internals.take_variables(self, variables)
        self.inner_optimizer.build(self._trained_variables)
        self.built = True

    def stateless_apply(self, optimizer_variables, grads, trainable_variables, mass=None):
        """Return the variables after `apply`, for loops that carry their state (JAX).

        Args:
            optimizer_variables: List of tensors, the values of `variables`.
            grads: As in `apply`.
            trainable_variables: List of tensors, the values of the variables built with.
            mass: As in `apply`.

        Returns:
            ``(trainable_variables, optimizer_variables)``: two lists of tensors.

        Raises:
            ValueError: The optimizer is not built; a list has the wrong length; as `apply` does;
                or the backend is TensorFlow, which has no stateless optimizers.
        """
        if keras.config.backend() == "tensorflow":
            return super().stateless_apply(optimizer_variables, grads, trainable_variables)
        if not self.built:
            raise ValueError(
                "stateless_apply needs a built optimizer: got one without variables. "
                "Call optimizer.build(model.trainable_variables) first."
            )
        arguments.state("optimizer_variables", optimizer_variables, self.variables)
        arguments.state("trainable_variables", trainable_variables, self._trained_variables)
        variables = [*self._trained_variables, *self.variables]
        values = [*trainable_variables, *optimizer_variables]
        with keras.StatelessScope(list(zip(variables, values, strict=True))) as scope:
            self.apply(grads, mass=mass)
        updated = [scope.get_current_value(variable) for variable in variables]
        count = len(self._trained_variables)
        return updated[:count], updated[count:]

    def _aligned(self, grads, trainable_variables):
        if trainable_variables is None:
            if not self.built:
                raise ValueError(
                    "apply without variables needs a built optimizer. Pass trainable_variables, "
                    "or call optimizer.build(model.trainable_variables) first."
                )
            trainable_variables = self._trained_variables
        grads, trainable_variables = arguments.gradients(grads, trainable_variables)
        keras_internals.require_known(self, trainable_variables)
        aligned = [None] * len(self._trained_variables)
        for gradient, variable in zip(grads, trainable_variables, strict=True):
            aligned[keras_internals.index_of(self, variable)] = gradient
        return aligned

    def exclude_from_weight_decay(self, var_list=None, var_names=None):
        """Call the inner optimizer's `exclude_from_weight_decay`."""
        self.inner_optimizer.exclude_from_weight_decay(var_list, var_names)

    def set_weights(self, weights):
        """Assign `weights`, one array for each of `variables`.

        Raises:
            ValueError: The number of arrays or a shape differs.
        """
        if self.built and not self._trained_variables and len(weights) > len(self.variables):
            # Keras hides an error here behind a log line that names no cause.
            warnings.warn(
                f"The state of {self.name!r} is not loaded: Keras builds the optimizer of an .h5 "
                "file for no variables. It cannot train, nor can a plain optimizer from such a "
                "file: compile the model again, or save it as .keras, which keeps all state.",
                stacklevel=2,
            )
            return
        if len(weights) != len(self.variables):
            raise ValueError(
                f"weights must hold {len(self.variables)} arrays, one for each of "
                f"optimizer.variables: got {len(weights)}."
            )
        for variable, weight in zip(self.variables, weights, strict=True):
            variable.assign(weight)

    def __dir__(self):
        # Keras' saving visits what dir() lists. `save_own_variables` saves the inner optimizers:
        # a second copy would cost their size again, and be missing from a plain checkpoint.
        return [n for n in super().__dir__() if n not in ("inner_optimizer", "optimizers")]
