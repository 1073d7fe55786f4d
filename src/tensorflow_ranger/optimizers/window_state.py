"""An unfinished window in a checkpoint, and back.

Each replica holds a share of a window's sums and of its mass. A checkpoint holds what the shares
add up to, so that any number of replicas may go on.
"""

import numpy as np
from keras import ops

from tensorflow_ranger.accumulation.window import SHARED
from tensorflow_ranger.backend import replicas


def save(store, state):
    """Save the variables of a window. In the middle of one, every replica must call it.

    Args:
        store: Mapping from names to arrays, which is added to.
        state: Dict of the variables by the names they are saved under.
    """
    begun = "window_micro_batches" in state and _value(state["window_micro_batches"]) > 0
    for name, variable in state.items():
        if begun and _copies(name, variable) > 1:
            store[name] = replicas.total(variable)
        else:
            store[name] = _value(variable)


def load(store, state, owner):
    """Load what `save` saved, by as many replicas or others.

    Args:
        store: Mapping from names to arrays.
        state: As in `save`.
        owner: Name of the optimizer, for the error.

    Raises:
        ValueError: The checkpoint lacks a part of the window.
    """
    if missing := sorted(state.keys() - set(store.keys())):
        raise ValueError(
            f"The checkpoint of {owner} holds no {', '.join(missing)}: it was saved for a "
            "model with fewer trainable variables. Load it into the model it was saved from."
        )
    for name, variable in state.items():
        copies = _copies(name, variable)
        value = np.asarray(store[name])
        variable.assign(value if copies == 1 else value / copies)


def _value(variable):
    return ops.convert_to_numpy(ops.convert_to_tensor(variable))


def _copies(name, variable):
    return replicas.copies([variable]) if name.startswith(SHARED) else 1
