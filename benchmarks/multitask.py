"""Print what `multitask` costs beside one backward pass per task, written by hand.

    KERAS_BACKEND=jax python -m benchmarks.multitask [--rounds 15] [--tasks 2]

A network of four layers has an output per task. The floor is a compiled forward pass, a backward
pass for each task, the sum of the gradients, and Adam's update, on the whole batch, as `multitask`
runs it. Times are CPU seconds of the process, ratios medians of the ratios within a round.
"""

import argparse
import platform
import statistics
import time

import keras
import numpy as np

import tensorflow_ranger as ranger
from tensorflow_ranger.multitask.combinations import COMBINATIONS

BATCH, WIDTH = 256, 512


def make_model(tasks, **settings):
    """Return a compiled model with `tasks` outputs, and a batch."""
    keras.utils.set_random_seed(0)
    inputs = features = keras.Input((WIDTH,))
    for _ in range(4):
        features = keras.layers.Dense(WIDTH, activation="relu")(features)
    names = [f"task{i}" for i in range(tasks)]
    outputs = {name: keras.layers.Dense(10, name=name)(features) for name in names}
    model = keras.Model(inputs, outputs)
    model.compile(keras.optimizers.Adam(), loss=dict.fromkeys(names, "mse"), **settings)
    rng = np.random.default_rng(0)
    x = rng.normal(size=(BATCH, WIDTH)).astype("float32")
    return model, x, {name: rng.normal(size=(BATCH, 10)).astype("float32") for name in names}


class Multitask:
    """The model's own train function."""

    def __init__(self, tasks, combine):
        self.model, x, y = make_model(tasks, jit_compile=keras.config.backend() == "jax")
        ranger.multitask(self.model, combine)
        self.data = x, y
        self.model.train_on_batch(x, y)
        self.state = None
        if keras.config.backend() == "jax":
            self.state = self.model._get_jax_state(True, True, True, True)

    def __call__(self):
        batch = iter([self.data])
        if keras.config.backend() == "jax":
            logs, self.state = self.model.train_function(self.state, batch)
        elif keras.config.backend() == "torch":
            logs = self.model.train_function([self.data])
        else:
            import tensorflow as tf

            data = tf.nest.map_structure(tf.convert_to_tensor, self.data)
            logs = self.model.train_function(iter([data]))
        float(logs["loss"])


def _mse(y, y_pred):
    return keras.ops.mean(keras.ops.square(y - y_pred))


def _jax_floor(model, x, y):
    import jax

    optimizer = model.optimizer
    optimizer.build(model.trainable_variables)
    frozen = [variable.value for variable in model.non_trainable_variables]

    def losses_of(weights, x, y):
        outputs = model.stateless_call(weights, frozen, x, training=True)[0]
        return [_mse(y[name], outputs[name]) for name in sorted(y)]

    @jax.jit
    def step(weights, state, x, y):
        losses, push = jax.linearize(lambda weights: losses_of(weights, x, y), weights)
        total = None
        for place in range(len(losses)):
            pull = jax.linear_transpose(lambda t, place=place: push(t)[place], weights)
            gradients = pull(jax.numpy.ones_like(losses[place]))[0]
            total = (
                gradients
                if total is None
                else [a + b for a, b in zip(total, gradients, strict=True)]
            )
        return optimizer.stateless_apply(state, total, weights), sum(losses)

    held = [[v.value for v in group] for group in (model.trainable_variables, optimizer.variables)]

    def run():
        (held[0], held[1]), loss = step(*held, x, y)
        float(loss)

    return run


def _tensorflow_floor(model, x, y):
    import tensorflow as tf

    model.optimizer.build(model.trainable_variables)
    variables = [variable.value for variable in model.trainable_variables]

    @tf.function(autograph=False)
    def step(x, y):
        with tf.GradientTape(persistent=True) as tape:
            outputs = model(x, training=True)
            losses = [_mse(y[name], outputs[name]) for name in y]
        rows = [tape.gradient(loss, variables) for loss in losses]
        totals = [
            tf.add_n([g for g in column if g is not None]) for column in zip(*rows, strict=True)
        ]
        model.optimizer.apply(totals, model.trainable_variables)
        return tf.add_n(losses)

    data = tf.nest.map_structure(tf.convert_to_tensor, (x, y))
    return lambda: float(step(*data))


def _torch_floor(model, x, y):
    import torch

    variables = model.trainable_variables
    model.optimizer.build(variables)
    x, y = torch.as_tensor(x), {name: torch.as_tensor(each) for name, each in y.items()}

    def run():
        model.zero_grad()
        outputs = model(x, training=True)
        losses = [_mse(y[name], outputs[name]) for name in y]
        for loss in losses:
            loss.backward(retain_graph=loss is not losses[-1])
        with torch.no_grad():
            model.optimizer.apply([v.value.grad for v in variables], variables)
        float(sum(loss.detach() for loss in losses))

    return run


FLOORS = {"jax": _jax_floor, "tensorflow": _tensorflow_floor, "torch": _torch_floor}


def seconds(function, times=5):
    """Return the CPU seconds of some calls."""
    start = time.process_time()
    for _ in range(times):
        function()
    return time.process_time() - start


def main():
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.multitask")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--tasks", type=int, default=2)
    arguments = parser.parse_args()
    print(f"{keras.config.backend()}, {platform.machine()}, {arguments.tasks} tasks")
    floor = FLOORS[keras.config.backend()](*make_model(arguments.tasks))
    rows = {name: Multitask(arguments.tasks, name) for name in COMBINATIONS}
    ratios = {name: [] for name in rows}
    for _ in range(arguments.rounds + 1):
        least = seconds(floor)
        for name, row in rows.items():
            ratios[name].append(seconds(row) / least)
    for name, each in ratios.items():
        print(f"{name}: {statistics.median(each[1:]):.2f} of one backward pass per task")


if __name__ == "__main__":
    main()
