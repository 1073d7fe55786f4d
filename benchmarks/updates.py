"""Print what an update costs, without a network: Ranger beside Keras' Adam.

    KERAS_BACKEND=jax python -m benchmarks.updates [--rounds 15]

Ten million parameters in 32 kernels. Rows run in turn; a round is twelve updates of each, so that
Lookahead's step is in it twice. Times are CPU seconds of the process; ratios are medians of the
ratios within a round. "One pass" reads and writes every parameter once.
"""

import argparse
import platform
import statistics
import time
from collections.abc import Callable

import keras
import numpy as np

import tensorflow_ranger as ranger
from tensorflow_ranger.backend import arrays

SHAPES = [(512, 600)] * 32
UPDATES = 12
ADAM, PASS = "Keras Adam", "one pass"


class Row:
    """An optimizer with variables of its own, called compiled."""

    def __init__(self, optimizer):
        rng = np.random.default_rng(0)
        self.seconds = []
        self._variables = [
            keras.Variable(rng.normal(size=shape).astype("float32"), name="kernel")
            for shape in SHAPES
        ]
        for variable in self._variables:
            variable.fan_in_axes = (0,)
        self._gradients = [
            keras.ops.convert_to_tensor(rng.normal(size=shape).astype("float32"))
            for shape in SHAPES
        ]
        self._optimizer = optimizer
        if optimizer is not None:
            optimizer.build(self._variables)
        self._step = getattr(self, f"_{keras.config.backend()}")()

    def run(self):
        """Make the updates of a round; return CPU seconds."""
        start = time.process_time()
        for _ in range(UPDATES):
            self._step()
        return time.process_time() - start

    def _apply(self):
        if self._optimizer is not None:
            self._optimizer.apply(self._gradients, self._variables)
            return
        for variable, gradient in zip(self._variables, self._gradients, strict=True):
            variable.assign_add(gradient)

    def _torch(self) -> Callable:
        import torch

        def step():
            with torch.no_grad():
                self._apply()

        return step

    def _tensorflow(self) -> Callable:
        import tensorflow as tf

        return tf.function(self._apply, autograph=False)

    def _jax(self) -> Callable:
        import jax

        def update(weights, state, gradients):
            if self._optimizer is None:
                return [w + g for w, g in zip(weights, gradients, strict=True)], state
            return self._optimizer.stateless_apply(state, gradients, weights)

        update = jax.jit(update, donate_argnums=(0, 1))
        slots = [] if self._optimizer is None else self._optimizer.variables
        held = [[v.value.copy() for v in group] for group in (self._variables, slots)]

        def step():
            weights, state = held
            held[:] = update(weights, state, self._gradients)
            jax.block_until_ready(held)

        return step


def main():
    """Measure and print the table of the active backend."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.updates")
    parser.add_argument("--rounds", type=int, default=15, help="per row (default: 15)")
    rounds = parser.parse_args().rounds
    rows = {
        ADAM: Row(keras.optimizers.Adam(1e-6)),
        PASS: Row(None),
        "RAdam": Row(ranger.RAdam(1e-6)),
        "Ranger without Lookahead": Row(ranger.Ranger(1e-6, lookahead=None)),
        "Ranger": Row(ranger.Ranger(1e-6)),
        "Ranger21": Row(ranger.Ranger21(1e-6, total_updates=1000)),
    }
    for row in rows.values():
        row.run()
    for _ in range(rounds):
        for row in rows.values():
            row.seconds.append(row.run())
    print(
        f"## {keras.config.backend()} {arrays.version()}, Keras {keras.__version__}, "
        f"Python {platform.python_version()}, {', '.join(arrays.devices())}\n\n"
        "| | CPU ms an update | of Adam | of 1.25 Adam + one pass |\n| --- | ---: | ---: | ---: |"
    )
    for name, row in rows.items():
        times = list(zip(row.seconds, rows[ADAM].seconds, rows[PASS].seconds, strict=True))
        of_adam = statistics.median(own / adam for own, adam, _ in times)
        of_both = statistics.median(own / (1.25 * adam + once) for own, adam, once in times)
        milliseconds = 1e3 * statistics.median(row.seconds) / UPDATES
        print(f"| {name} | {milliseconds:.1f} | {of_adam:.2f} | {of_both:.2f} |", flush=True)


if __name__ == "__main__":
    main()
