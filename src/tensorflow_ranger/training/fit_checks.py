"""What `fit` was given is what the model was compiled for."""

import keras

from tensorflow_ranger.backend import keras_internals


def require_targets(model, data):
    """Check that a batch has targets, if Keras is to compare outputs with them.

    Args:
        model: A compiled Keras model.
        data: The batch, ``(x, y, sample_weight)``.

    Raises:
        ValueError: It has none.
    """
    compares = type(model).compute_loss is keras.Model.compute_loss
    if data[1] is None and compares and keras_internals.compiled_loss(model) is not None:
        raise ValueError(
            "The loss of compile compares outputs with targets: got y=None. Give fit x and y, or "
            "batches (x, y). An autoencoder is trained by fit(x, x)."
        )


def require_same_variables(model, variables):
    """Check that the model trains those variables that its training step was made for.

    Args:
        model: A compiled Keras model.
        variables: List of the trainable variables that the step was made for.

    Raises:
        ValueError: It trains others.
    """
    before = {id(variable) for variable in variables}
    now = {id(variable) for variable in model.trainable_variables}
    if before == now:
        return
    changed = [
        *(f"{v.path} is trainable now" for v in model.trainable_variables if id(v) not in before),
        *(f"{v.path} is not any more" for v in variables if id(v) not in now),
    ]
    more = f" and {len(changed) - 3} more" if len(changed) > 3 else ""
    raise ValueError(
        "The trainable variables have changed since the training step was made: "
        f"{', '.join(changed[:3])}{more}. Call model.compile again after freezing or unfreezing "
        "layers or enable_lora."
    )
