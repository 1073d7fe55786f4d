"""Training that leaves no trace: the model, its optimizer and its metrics end as they were."""

import contextlib

import keras
import numpy as np
from keras import ops

from tensorflow_ranger.backend import arrays, keras_internals
from tensorflow_ranger.training.layer_state import LayerState


@contextlib.contextmanager
def training_undone(model):
    """Let `model` train inside, and give it back as it was.

    An optimizer that is not built yet is replaced by a copy, for which weights it is built the user
    may still change.

    Args:
        model: A compiled model that is built, with its losses and metrics.
    """
    optimizer = model.optimizer
    # Of a stateful recurrent layer; `arrays.kept` has what is not a Keras variable at all.
    rows = [v for v in untracked_state(model) if isinstance(v, keras.Variable)]
    variables = [*model.variables, *model.metrics_variables, *rows]
    # Past Keras' __setattr__, which keeps record of attributes.
    attributes = dict(vars(model)), dict(vars(optimizer))
    if optimizer.built:
        held = _values([*variables, *optimizer.variables])
    else:
        held = _values(variables)
        vars(model)["optimizer"] = type(optimizer).from_config(optimizer.get_config())
        model.train_function = None
    with arrays.kept(model):
        try:
            yield
        finally:
            for owner, before in zip((model, optimizer), attributes, strict=True):
                for name in vars(owner).keys() - before.keys():
                    del vars(owner)[name]
                vars(owner).update(before)
            for variable, value in held:
                variable.assign(value)


def untracked_state(model):
    """Return the variables that layers keep and `model.variables` has not."""
    return LayerState(model, keras_internals.seeds_of(model)).variables


def _values(variables):
    # Frameworks may give the variable's own memory.
    return [(v, np.array(ops.convert_to_numpy(v.value))) for v in variables]
