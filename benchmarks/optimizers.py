"""Print what eight optimizers reach after the same number of updates, each at its best rate.

    KERAS_BACKEND=jax NPROC=1 python -m benchmarks.optimizers [--problem digits]

A training is one compiled `lax.scan`, whose learning rates, batches and initial weights are its
arguments: it is compiled once for an optimizer and a problem. Rates are chosen on validation data
with seeds of their own; the tables are of test data. The text is the archive
of the task `reviews`.
"""

import argparse
import collections
import dataclasses
import math
import platform
import statistics
import sys
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
import keras
import numpy as np
from keras import layers

from tensorflow_ranger.optimizers.fan_in import tag_fan_in
from tensorflow_ranger.optimizers.radam import RAdam
from tensorflow_ranger.optimizers.ranger import Ranger
from tensorflow_ranger.optimizers.ranger21 import Ranger21
from tensorflow_ranger.optimizers.ranger_optimizer import RangerOptimizer
from tensorflow_ranger.rules.lookahead import Lookahead
from tensorflow_ranger_cli.tasks import digits
from tensorflow_ranger_cli.tasks.data import reviews

RATES = [10 ** (half / 2) for half in range(-7, 3)]  # 3.2e-4 to 10
TUNING_SEEDS = (101, 102)
SEEDS = (1, 2, 3, 4, 5)
CONSTANT, COSINE, OWN = "constant", "cosine", "own"
OWN_ROW = "Ranger21, its own schedule"

# Updates are multiples of 30, as k of Lookahead is 5 or 6: the last update is one of the slow
# weights, and the weights that are judged are the slow ones.
OPTIMIZERS = {
    "SGD, momentum 0.9": lambda _: keras.optimizers.SGD(momentum=0.9),
    "Adam": lambda _: keras.optimizers.Adam(),
    "AdamW": lambda _: keras.optimizers.AdamW(),
    "RAdam": lambda _: RAdam(),
    "Lookahead(Adam)": lambda _: RangerOptimizer(
        inner=keras.optimizers.Adam(), accumulation_steps=1, lookahead=Lookahead(5, 0.5)
    ),
    "Ranger": lambda _: Ranger(),
    "Ranger21": lambda _: Ranger21(warm_up=False, warm_down=False),
    # Its documentation leaves the output layer to AdamW. A GRU's bias is a matrix to Keras' test.
    "Muon": lambda _: keras.optimizers.Muon(exclude_layers=["output", "bias$"]),
    # The least rate is a share of the rate it was made with, and here the rate is a tensor.
    OWN_ROW: lambda updates: Ranger21(total_updates=updates, least_learning_rate=0.0),
}

NOISE = 0.3
IMAGES, IMAGE_BATCH, IMAGE_UPDATES = 3000, 64, 300  # of 4,000: the others are for validation

SYMBOLS = 64
HELD_OUT = 120  # windows of LONG characters, for validation and for the test each
SHORT, LONG, TEXT_BATCH, TEXT_UPDATES = 32, 256, 32, 300


@dataclasses.dataclass(frozen=True)
class Problem:
    """What is learned, and how it is judged.

    Args:
        metric: What a table shows, in words.
        sign: 1 if more is better, else -1.
        updates: Updates of a training.
        build: Function that returns a model with logits.
        batches: Function ``seed -> (x, y)``, the batches of all updates along the first axis.
        measure: Function ``(logits, y) -> number``.
        validation: Inputs and targets that choose the learning rate.
        test: Inputs and targets of the tables.
        decimals: Of a number in the table.
    """

    metric: str
    sign: int
    updates: int
    build: Callable
    batches: Callable
    measure: Callable
    validation: tuple
    test: tuple
    decimals: int


def digits_problem():
    """Return handwritten digits, 30 % of whose training labels are drawn anew."""
    (x, y), test = [(x.reshape(len(x), -1), y) for x, y in digits.load()]

    def batches(seed):
        rng = np.random.default_rng(seed)
        labels = y[:IMAGES].copy()
        wrong = rng.permutation(IMAGES)[: round(NOISE * IMAGES)]
        labels[wrong] = rng.integers(0, digits.CLASSES, len(wrong))
        places = _epochs(rng, IMAGES, IMAGE_UPDATES * IMAGE_BATCH)
        places = places.reshape(IMAGE_UPDATES, IMAGE_BATCH)
        return x[places], labels[places]

    def build():
        hidden = [layers.Dense(128, activation="relu") for _ in range(2)]
        output = layers.Dense(digits.CLASSES, name="output")
        return keras.Sequential([keras.Input(x.shape[1:]), *hidden, output])

    return Problem(
        "test accuracy in %, more is better",
        1,
        IMAGE_UPDATES,
        build,
        batches,
        lambda logits, y: 100.0 * jnp.mean(jnp.argmax(logits, -1) == y),
        (x[IMAGES:], y[IMAGES:]),
        test,
        1,
    )


def text_problem():
    """Return English film reviews, a character at a time."""
    text = "\n".join(np.random.default_rng(0).permutation(_film_reviews()).tolist())
    cut = len(text) - 2 * (HELD_OUT * LONG + 1)
    known = collections.Counter(text[:cut]).most_common(SYMBOLS - 1)
    numbers = {character: number for number, (character, _) in enumerate(known, start=1)}
    codes = np.array([numbers.get(character, 0) for character in text], "int32")

    def batches(seed):
        rng = np.random.default_rng(seed)
        starts = rng.integers(0, cut - SHORT, (TEXT_UPDATES, TEXT_BATCH))
        windows = codes[starts[..., None] + np.arange(SHORT + 1)]
        return windows[..., :-1], windows[..., 1:]

    def held_out(start):
        part = codes[start : start + HELD_OUT * LONG + 1]
        return part[:-1].reshape(HELD_OUT, LONG), part[1:].reshape(HELD_OUT, LONG)

    def build():
        return keras.Sequential(
            [
                keras.Input((None,), dtype="int32"),
                layers.Embedding(SYMBOLS, 32),
                layers.GRU(64, return_sequences=True),
                layers.Dense(SYMBOLS, name="output"),
            ]
        )

    return Problem(
        "test bits per character, less is better",
        -1,
        TEXT_UPDATES,
        build,
        batches,
        lambda logits, y: _cross_entropy(logits, y) / math.log(2),
        held_out(cut),
        held_out(cut + HELD_OUT * LONG + 1),
        3,
    )


PROBLEMS = {"digits": digits_problem, "text": text_problem}


def _epochs(rng, samples, count):
    passes = [rng.permutation(samples) for _ in range(-(-count // samples))]
    return np.concatenate(passes)[:count]


def _film_reviews():
    lines = reviews.table(reviews.FILE.read(), "film review")
    return [line.split("\t")[2] for line in lines]


def _cross_entropy(logits, y):
    return jnp.mean(keras.ops.sparse_categorical_crossentropy(y, logits, from_logits=True))


class Trainer:
    """One optimizer on one problem: compiled once, run for many rates and seeds."""

    def __init__(self, problem, make_optimizer):
        self._problem, self._make_optimizer = problem, make_optimizer
        self._model = tag_fan_in(problem.build())
        self._frozen = [variable.value for variable in self._model.non_trainable_variables]
        self._optimizer, *_ = self._start()
        names = [variable.path.split("/")[-1] for variable in self._optimizer.variables]
        self._rate = names.index("learning_rate")
        self._train = jax.jit(self._scan)
        self._measure = jax.jit(lambda weights, x, y: problem.measure(self._logits(weights, x), y))

    def run(self, rate, schedule, seed, data):
        """Train; return what the problem measures on `data`."""
        updates = self._problem.updates
        rates = np.full(updates, rate, "float32")
        if schedule == COSINE:
            rates *= 0.5 + 0.5 * np.cos(np.pi * np.arange(updates, dtype="float32") / updates)
        keras.utils.set_random_seed(seed)
        initial = self._problem.build().get_weights()
        _, weights, state = self._start(initial)
        weights = self._train(weights, state, rates, *self._problem.batches(seed))
        result = float(self._measure(weights, *data))
        # A diverged training must not win, nor stand for a guess among ten digits.
        finite = all(bool(jnp.isfinite(weight).all()) for weight in weights)
        return result if finite and math.isfinite(result) else math.nan

    def _start(self, initial=None):
        # A new optimizer for each training: slow weights begin as copies of the weights.
        if initial is not None:
            self._model.set_weights(initial)
        optimizer = self._make_optimizer(self._problem.updates)
        optimizer.build(self._model.trainable_variables)
        weights = [variable.value for variable in self._model.trainable_variables]
        return optimizer, weights, [variable.value for variable in optimizer.variables]

    def _logits(self, weights, x):
        return self._model.stateless_call(weights, self._frozen, x)[0]

    def _scan(self, weights, state, rates, x, y):
        def update(carry, batch):
            weights, state = carry
            rate, x, y = batch
            state = [*state[: self._rate], rate, *state[self._rate + 1 :]]
            gradients = jax.grad(lambda weights: _cross_entropy(self._logits(weights, x), y))(
                weights
            )
            return self._optimizer.stateless_apply(state, gradients, weights), None

        (weights, _), _ = jax.lax.scan(update, (weights, state), (rates, x, y))
        return weights


@dataclasses.dataclass(frozen=True)
class Cell:
    """What a table says of one optimizer with one schedule."""

    rate: float
    results: list

    def text(self, decimals):
        """Return mean, standard deviation and rate, a rate at an end of the grid with a star."""
        mean, deviation = statistics.mean(self.results), statistics.stdev(self.results)
        star = "\\*" if self.rate in (RATES[0], RATES[-1]) else ""
        return f"{mean:.{decimals}f} ± {deviation:.{decimals}f} | {self.rate:.1e}{star}"


def compare(problem, trainer, schedule):
    """Choose the learning rate on validation data, then train with the seeds that count."""

    def score(rate):
        results = [trainer.run(rate, schedule, s, problem.validation) for s in TUNING_SEEDS]
        mean = problem.sign * statistics.mean(results)
        return -math.inf if math.isnan(mean) else mean

    scores = {rate: score(rate) for rate in RATES}
    best = max(scores, key=scores.__getitem__)
    cell = Cell(best, [trainer.run(best, schedule, seed, problem.test) for seed in SEEDS])
    for name, numbers in (("validation by rate", scores.values()), ("test by seed", cell.results)):
        digest = " ".join(f"{abs(number):.{problem.decimals}f}" for number in numbers)
        print(f"    {schedule}, {name}: {digest}", file=sys.stderr, flush=True)
    return cell


def report(title, problem):
    """Train all optimizers and print one table."""
    rows = {}
    for name, make_optimizer in OPTIMIZERS.items():
        print(f"  {title}: {name}", file=sys.stderr, flush=True)
        trainer = Trainer(problem, make_optimizer)
        schedules = (OWN,) if name == OWN_ROW else (CONSTANT, COSINE)
        cells = [compare(problem, trainer, schedule) for schedule in schedules]
        rows[name] = " | ".join(cell.text(problem.decimals) for cell in cells)
        if name == OWN_ROW:
            rows[name] = f"| | {rows[name]}"
    print(f"\n### {title}: {problem.metric}\n")
    print("| | constant rate | its rate | with schedule | its rate |")
    print("| --- | ---: | ---: | ---: | ---: |")
    for name, row in rows.items():
        print(f"| {name} | {row} |")
    sys.stdout.flush()


def main():
    """Compare the optimizers on every problem."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.optimizers")
    parser.add_argument("--problem", choices=PROBLEMS, action="append", help="default: all")
    options = parser.parse_args()
    if keras.config.backend() != "jax":
        parser.error("needs the environment variable KERAS_BACKEND=jax")
    start = time.perf_counter()
    print(
        f"## JAX {jax.__version__}, Keras {keras.__version__}, Python {platform.python_version()}"
    )
    for title in options.problem or PROBLEMS:
        report(title, PROBLEMS[title]())
    print(f"\n{(time.perf_counter() - start) / 60:.0f} minutes.")


if __name__ == "__main__":
    main()
