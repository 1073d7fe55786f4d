"""What the optimizers of the Ranger family share: slots, centralization, slow weights."""

from keras import ops

from tensorflow_ranger.accumulation.buffer import accumulator_dtype
from tensorflow_ranger.backend import keras_internals
from tensorflow_ranger.checks import arguments
from tensorflow_ranger.optimizers.gradient_shaping import GradientShaping
from tensorflow_ranger.optimizers.slow_weights import SlowWeights


class FamilyOptimizer(keras_internals.JointUpdate):
    """Updates all variables at once, in float32 at least, and lets slow weights follow.

    A subclass gives `_build_slots(variables)`, and `_update(gradients, variables, learning_rate)`
    of lists.

    Args:
        learning_rate: As Keras' optimizers take it.
        beta_1: Float in [0, 1).
        epsilon: Float > 0.
        lookahead: A `Lookahead`, its config, or None.
        adaptive_clipping: An `AdaptiveGradientClipping`, its config, or None.
        centralize: Whether to centralize gradients.
        evaluate_slow_weights: Whether to leave the model on the slow weights when `fit` ends.
        name: Name of the optimizer.
        **kwargs: Arguments of `keras.optimizers.Optimizer`.

    Raises:
        ValueError: An argument is out of range; `gradient_accumulation_steps` is given.
        TypeError: `lookahead` is no `Lookahead`.
    """

    def __init__(
        self,
        learning_rate,
        beta_1,
        epsilon,
        lookahead,
        adaptive_clipping,
        centralize,
        evaluate_slow_weights,
        name,
        **kwargs,
    ):
        if kwargs.get("gradient_accumulation_steps"):
            raise ValueError(
                f"{type(self).__name__} does not accumulate by itself: got "
                f"gradient_accumulation_steps={kwargs['gradient_accumulation_steps']}. Use "
                f"RangerOptimizer(inner={type(self).__name__}(...), accumulation_steps=...), or "
                "microbatch."
            )
        super().__init__(learning_rate=learning_rate, name=name, **kwargs)
        self.beta_1 = arguments.fraction("beta_1", beta_1)
        self.epsilon = arguments.positive("epsilon", epsilon)
        self.lookahead = arguments.lookahead(lookahead)
        self.adaptive_clipping = arguments.adaptive_clipping(adaptive_clipping)
        self.centralize = bool(centralize)
        self._shaping = GradientShaping(self.adaptive_clipping, self.centralize)
        self.evaluate_slow_weights = arguments.evaluate_slow_weights(
            evaluate_slow_weights, self.lookahead
        )

    def build(self, variables) -> None:
        """Create the slots and the slow weights of `variables`."""
        if self.built:
            return
        super().build(variables)
        self._build_slots(variables)
        self._slow = None
        if self.lookahead is not None:
            self._slow = SlowWeights(self.lookahead, variables, self)

    def apply(self, grads, trainable_variables=None) -> None:
        """Update the variables, and let the slow weights follow.

        Args:
            grads: List of gradients; None stands for a variable that the loss does not depend on.
            trainable_variables: List of the variables, in the order of `grads`. None takes those
                the optimizer was built with.

        Raises:
            ValueError: As Keras' optimizers do.
        """
        super().apply(grads, trainable_variables)
        if len(grads) and self._slow is not None:
            if trainable_variables is None:
                trainable_variables = keras_internals.trained_variables(self)
            self._slow.follow(self.iterations.value, list(trainable_variables))

    def finalize_variable_values(self, var_list) -> None:
        """End the training: with `evaluate_slow_weights` the weights become the slow weights.

        Args:
            var_list: List of the model's trainable variables.
        """
        super().finalize_variable_values(var_list)
        if self.built and self.evaluate_slow_weights and self._slow is not None:
            self._slow.load(keras_internals.trained_variables(self))

    def get_config(self) -> dict:
        """Return the arguments that make an optimizer like this one, without its state."""
        return {
            **super().get_config(),
            "beta_1": self.beta_1,
            "epsilon": self.epsilon,
            "lookahead": arguments.config_of(self.lookahead),
            "adaptive_clipping": arguments.config_of(self.adaptive_clipping),
            "centralize": self.centralize,
            "evaluate_slow_weights": self.evaluate_slow_weights,
        }

    def _update_jointly(self, grads, trainable_variables, learning_rate):
        gradients = [
            ops.cast(_dense(gradient, variable), accumulator_dtype(variable.dtype))
            for gradient, variable in zip(grads, trainable_variables, strict=True)
        ]
        self._update(gradients, trainable_variables, learning_rate)


def _dense(gradient, variable):
    # A graph may not know the shape of a gradient.
    return ops.reshape(ops.convert_to_tensor(gradient), variable.shape)
