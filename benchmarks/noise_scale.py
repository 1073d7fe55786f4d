"""Print what measuring the noise scale costs.

    KERAS_BACKEND=jax python -m benchmarks.noise_scale [--rounds 15]

The founding network trains on batches of 256 in micro-batches of 32, by `microbatch` and by a
`RangerOptimizer`, each with and without `NoiseScale`. All four run in turn; times are CPU seconds
of the process, ratios medians of the ratios within a round.
"""

import argparse
import platform
import statistics

import keras

import tensorflow_ranger as ranger
from benchmarks.fused import SIZE, Row, cut
from benchmarks.problems import BATCH, PROBLEMS
from tensorflow_ranger.training.microbatch import install


class MeasuredRow(Row):
    """A model that trains by its own train function, with or without `NoiseScale`."""

    def __init__(self, problem, streaming, measured):
        keras.utils.set_random_seed(0)
        self.model, x, y = PROBLEMS[problem]()
        optimizer = keras.optimizers.Adam()
        if streaming:
            optimizer = ranger.RangerOptimizer(inner=optimizer, accumulation_steps=BATCH // SIZE)
        self.model.compile(
            optimizer,
            loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
            jit_compile=keras.config.backend() == "jax",
        )
        if not streaming:
            install(self.model, SIZE, may_fold=False)
        self.batches = cut(x, y, SIZE if streaming else BATCH)
        self.model.train_on_batch(*self.batches[0])
        if measured:
            ranger.callbacks.NoiseScale(verbose=False).set_model(self.model)
            self.model.train_on_batch(*self.batches[0])
        self.state = None
        if keras.config.backend() == "jax":
            self.state = self.model._get_jax_state(True, True, True, True)
        self.seconds = []


def main():
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.noise_scale")
    parser.add_argument("--rounds", type=int, default=15)
    rounds = parser.parse_args().rounds
    print(f"{keras.config.backend()}, {platform.machine()}, {rounds} rounds")
    for streaming, name in ((False, "microbatch"), (True, "RangerOptimizer")):
        plain, measured = (MeasuredRow("CNN", streaming, flag) for flag in (False, True))
        ratios = []
        for _ in range(rounds + 1):
            before, after = plain.run(), measured.run()
            ratios.append(after / before)
        ratio = statistics.median(ratios[1:])  # the first round warms up
        print(f"{name}: {ratio:.3f} ({min(ratios[1:]):.3f} to {max(ratios[1:]):.3f})")


if __name__ == "__main__":
    main()
