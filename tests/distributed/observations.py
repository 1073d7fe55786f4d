"""What is looked at under an engine beside the cases."""

import contextlib
import dataclasses

import keras
import numpy as np

import tensorflow_ranger as ranger
from tests.distributed import cases, padded
from tests.float64 import in_float64


def dropout(here, folder):
    """Return how many of 64 inputs a batch of one sample a replica has dropped on some only."""
    with here.scope():
        keras.utils.set_random_seed(1)
        model = keras.Sequential(
            [keras.Input((64,)), keras.layers.Dropout(0.5), keras.layers.Dense(1, use_bias=False)]
        )
        model.layers[-1].kernel.assign(np.zeros((64, 1)))
        model.compile(keras.optimizers.SGD(1.0), loss="mse")
        ranger.microbatch(model, 1)
    rows = here.replicas // here.feeds
    model.fit(np.ones((rows, 64)), np.ones((rows, 1)), batch_size=rows, verbose=0)
    drops = np.abs(model.get_weights()[0][:, 0])
    return int(np.sum((drops > 0) & (drops < drops.max() * 0.99)))


def trimmed(here, folder):
    """Return what becomes of padded samples in micro-batches of 4, in float64."""
    return _trimmed(here, padded.QUICK)


def trimmed_others(here, folder):
    """Return the same of the cases that take longer."""
    # Processes of JAX need batches that they can share evenly.
    left_out = [*padded.QUICK, *(["whole"] if here.processes > 1 else [])]
    return _trimmed(here, [name for name in padded.CASES if name not in left_out])


def resumed(here, folder):
    """Return the weights of a run that was saved in mid-window, loaded and gone on with."""
    case = cases.CASES["saved"]
    if keras.config.backend() == "tensorflow" and here.processes > 1:
        case = dataclasses.replace(case, size=3)  # Keras' own step fails there
    path = folder / f"checkpoint{here.process}.keras"
    save = keras.callbacks.LambdaCallback(
        on_epoch_end=lambda epoch, logs: epoch == 0 and model.save(path)
    )
    with here.scope():
        model = cases.compiled(case)
    cases.fit(model, case, here, epochs=1, callbacks=[save])
    if keras.config.backend() == "torch":
        path = folder / "checkpoint0.keras"  # which is whole: that process has met this one since
    with here.scope():
        model = keras.saving.load_model(path)
        if case.size:
            ranger.microbatch(model, case.size)
    pending = model.optimizer.pending_micro_batches
    cases.fit(model, case, here, initial_epoch=1)
    return {"weights": [w.tolist() for w in model.get_weights()], "pending": pending}


def refused(here, folder):
    """Return the errors for what an engine can't do, by what was asked for."""
    messages = {}
    if here.processes > 1:
        model = _classifier(here, {"size": "auto"})
        with _kept(messages, "size"):
            model.fit(np.ones((8, 6)), np.ones((8, 3)), batch_size=8, verbose=0)
    with here.scope():
        words = keras.Input((None,))
        vectors = keras.layers.Embedding(4, 2)(words)
        mean = keras.ops.mean(vectors, axis=1)
        model = keras.Model(words, keras.layers.Dense(2)(mean))  # which layouts divide
        model.compile("sgd", loss="mse")
        ranger.microbatch(model, 2, padding=0)
    with _kept(messages, "padding"):
        model.fit(np.eye(8)[:, :6], np.ones((8, 2)), batch_size=8, verbose=0)
    if keras.config.backend() == "jax":
        model = _classifier(here, {"size": 2})
        model.fit(np.ones((8, 6)), np.ones((8, 3)), batch_size=8, verbose=0)
        with _kept(messages, "rows"):
            model.evaluate(np.ones((3, 6)), np.ones((3, 3)), verbose=0)
    return messages


def searched(here, folder):
    """Return the size that one process finds for its devices."""
    if here.processes > 1:
        return None
    model = _classifier(here, {"size": "auto"})
    x, y = np.ones((8 * here.replicas, 6)), np.ones((8 * here.replicas, 3))
    model.fit(x, y, batch_size=len(x), epochs=16, verbose=0)
    return model.microbatch_plan.chosen


def begun_apart(here, folder):
    """Return what became of weights that no common seed was given to, by the way in."""
    outcomes = {}
    for size in (None, 2):
        with here.scope():
            model = cases.classifier()
            model.layers[0].bias.assign_add(np.full(8, 0.1 * (here.process + 1)))
            model.compile(ranger.RangerOptimizer(accumulation_steps=2), loss="mse")
        if size:
            ranger.microbatch(model, size)
        try:
            model.fit(np.ones((16, 6)), np.ones((16, 3)), batch_size=4, verbose=0)
            outcomes[str(size)] = keras.ops.convert_to_numpy(model.layers[0].bias).tolist()
        except RuntimeError as error:
            outcomes[str(size)] = str(error)
    return outcomes


def _classifier(here, settings):
    with here.scope():
        model = cases.classifier()
        model.compile("sgd", loss="mse")
        return ranger.microbatch(model, **settings)


def _trimmed(here, names):
    with in_float64():
        return {name: padded.trained(name, here, 4) for name in names}


@contextlib.contextmanager
def _kept(messages, name):
    try:
        yield
    except ValueError as error:
        messages[name] = str(error)
