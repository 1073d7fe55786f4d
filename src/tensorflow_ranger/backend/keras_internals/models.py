"""What Keras' models, layers and metrics do not export. Read in Keras 3.12 to 3.15."""

import keras
from keras.src.backend.common import global_state
from keras.src.trainers import data_adapters


def layers_of(model):
    """Return all layers of `model`, itself first, layers within layers after what holds them.

    ``Layer._flatten_layers`` visits what layers hold in attributes, lists and dicts, each once;
    ``Model.layers`` has the outermost alone.
    """
    return list(model._flatten_layers())


def takes_training(model):
    """Return whether `model` is called with ``training``.

    Keras' own train steps ask ``Layer._call_has_training_arg``, read from the signature of `call`.
    """
    return model._call_has_training_arg


def seeds_of(model):
    """Return the variables of a model's random seeds.

    No private name, but a rule that Keras states nowhere: ``non_trainable_variables`` has the
    state of `keras.random.SeedGenerator` objects beside ``non_trainable_weights``.
    """
    weights = {id(weight) for weight in model.non_trainable_weights}
    return [v for v in model.non_trainable_variables if id(v) not in weights]


def build(model, data):
    """Build `model`, its compiled loss, metrics and optimizer, as `fit` does, without computing.

    ``Trainer._symbolic_build`` calls the model on symbolic tensors like those of a batch.

    Args:
        model: A compiled Keras model.
        data: Tuple ``(x, y, sample_weight)`` of arrays.
    """
    model._symbolic_build(data_batch=data)


def before_build(model, function):
    """Return the attribute of `model` by which `fit` and `evaluate` show their iterator first.

    On JAX both call ``_symbolic_build(iterator=...)`` with what they take the batches from, before
    they take one; ``train_on_batch`` and `build` have a ``data_batch`` in its place.

    Args:
        model: A Keras model.
        function: Function of Keras' epoch iterator.

    Returns:
        Dict with a method for the model's object, by its name.
    """

    def symbolic_build(iterator=None, data_batch=None):
        if iterator is not None:
            function(iterator)
        type(model)._symbolic_build(model, iterator=iterator, data_batch=data_batch)

    return {"_symbolic_build": symbolic_build}


def in_place_of_build(function):
    """Return the attribute of a model that `function` builds it for `fit` and `evaluate`.

    On TensorFlow both call ``_maybe_symbolic_build``, which builds under a strategy alone.

    Args:
        function: Function of ``iterator``, Keras' epoch iterator, and ``data_batch``: one is None.

    Returns:
        Dict with a method for the model's object, by its name.
    """
    return {"_maybe_symbolic_build": function}


def strategy_of(model):
    """Return the `tf.distribute.Strategy` in whose scope `model` was made, or None.

    ``TensorFlowTrainer.__init__`` looks for it; other backends have none.
    """
    return getattr(model, "_distribute_strategy", None)


def compiled_metrics(model):
    """Return the one metric that holds all that `compile` was given, or None.

    ``Trainer.compile`` makes the ``_compile_metrics``; they are built with the first batch.
    """
    return model._compile_metrics


def metric_function(metric):
    """Return the function that `metric` is the mean of, or `metric` itself.

    ``MeanMetricWrapper`` has it as ``_fn``: what `compile` makes of a function that it is given.
    """
    return getattr(metric, "_fn", metric)


def add_metric(model, metric):
    """Let the steps of `model` carry `metric`, if they are compiled after this.

    Layers collect the metrics they are assigned in ``_metrics``. An assignment would save them
    with the model, too.
    """
    if not any(each is metric for each in model._metrics):
        model._metrics.append(metric)


def is_saving():
    """Return whether a model is being saved at this moment.

    Keras' serialization holds a map of the objects that it has met, as a global attribute.
    """
    return global_state.get_global_attribute("shared_objects/id_to_obj_map") is not None


def wrapped_error(error):
    """Return what Keras caught in a layer's call and raised again as `error`, or None.

    Keras adds the call's arguments to the text, and marks such an error with
    ``_keras_call_info_injected``. Any other error's context may have been handled long before.
    """
    return error.__context__ if hasattr(error, "_keras_call_info_injected") else None


def as_fit_converts(x, y, sample_weight, samples):
    """Return the arrays of a batch as `fit` hands them to a training step.

    Args:
        x: Inputs.
        y: Targets, or None.
        sample_weight: Sample weights, or None.
        samples: Number of samples.

    Returns:
        Tuple of nested tensors.
    """
    adapter = data_adapters.get_data_adapter(x, y, sample_weight, batch_size=samples)
    if keras.config.backend() == "tensorflow":
        batch = next(iter(adapter.get_tf_dataset()))
    elif keras.config.backend() == "jax":
        batch = next(iter(adapter.get_jax_iterator()))
    else:
        batch = next(iter(adapter.get_torch_dataloader()))
    return keras.utils.unpack_x_y_sample_weight(batch)
