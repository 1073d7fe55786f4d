"""Training that leaves no trace: the model, its optimizer and its metrics end as they were."""

import contextlib

import numpy as np
from keras import ops

from tensorflow_ranger.backend import arrays


@contextlib.contextmanager
def training_undone(model):
    """Let `model` train inside, and give it back as it was.

    An optimizer that is not built yet is replaced by a copy, for which weights it is built the user
    may still change.

    Args:
        model: A compiled model that is built, with its losses and metrics.
    """
    optimizer = model.optimizer
    # Past Keras' __setattr__, which keeps record of attributes.
    attributes = dict(vars(model)), dict(vars(optimizer))
    if optimizer.built:
        held = _values([*model.variables, *model.metrics_variables, *optimizer.variables])
    else:
        held = _values([*model.variables, *model.metrics_variables])
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


def _values(variables):
    # Frameworks may give the variable's own memory.
    return [(v, np.array(ops.convert_to_numpy(v.value))) for v in variables]
