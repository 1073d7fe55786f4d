"""Strings of two to five spoken digits: a bidirectional GRU writes the numbers down."""

import numpy as np

from tensorflow_ranger_cli.tasks.data import recordings
from tensorflow_ranger_cli.tasks.task import Figure, Task

FRAMES = 128
SHORTEST, LONGEST = 2, 5
TRAINING, HELD_OUT = 4000, 500
SEED = 0  # fixed: the strings are the same in every run


def load():
    """Return recordings, one spliced to another, and the digits that are said.

    A held-out string is made of held-out recordings.

    Returns:
        ``((x, y), (x, y))`` for 4,000 training and 500 held-out strings: float32 frames of shape
        ``(n, 128, 13)``, and int32 rows of the number of real frames, then the digits, numbered
        from 1, then zeros.

    Raises:
        CommandError: The data is missing or another.
    """
    training, held_out = recordings.load()
    generator = np.random.default_rng(SEED)
    return _strings(training, TRAINING, generator), _strings(held_out, HELD_OUT, generator)


def _strings(recorded, count, generator):
    from tensorflow_ranger_cli.tasks.models import ctc

    frames, lengths, digits = recorded
    x = np.zeros((count, FRAMES, frames.shape[-1]), "float32")
    real, said = np.zeros(count, "int32"), []
    for i in range(count):
        chosen = generator.integers(len(lengths), size=generator.integers(SHORTEST, LONGEST + 1))
        # The few strings of long recordings lose their end; two fit always.
        chosen = chosen[np.cumsum(lengths[chosen]) <= FRAMES]
        spliced = np.concatenate([frames[j, : lengths[j]] for j in chosen])
        real[i] = len(spliced)
        x[i, : real[i]] = spliced
        said.append([int(digit) + 1 for digit in digits[chosen]])
    return x, ctc.targets(real, said)


def build_model(seed):
    """Return a bidirectional GRU of two layers, with logits for each digit and for none.

    Args:
        seed: Integer >= 0; the initial weights are a function of it alone.
    """
    from tensorflow_ranger_cli.tasks.models import ctc

    return ctc.build_model(seed, (FRAMES, recordings.COEFFICIENTS), len(recordings.WORDS))


def compile_arguments():
    """Return the loss, and the metric that counts whole strings."""
    from tensorflow_ranger_cli.tasks.models import ctc

    return ctc.compile_arguments()


def digit_errors(model, x, y):
    """Return the digits put in, left out or changed by the model, per digit said."""
    from tensorflow_ranger_cli.tasks.models import ctc

    return ctc.label_errors(model, x, y)


TASK = Task(
    name="spoken-strings",
    title="Strings of spoken digits",
    summary="strings of two to five spoken digits, a bidirectional GRU that writes them (CTC)",
    samples="strings",
    data=recordings.FILE,
    load=load,
    build_model=build_model,
    compile_arguments=compile_arguments,
    metrics=("all_right",),
    figures=(Figure("digit errors", digit_errors, "{:.1%}", bar=0.03, at_least=False),),
    defaults={
        "optimizer": "adam",
        "learning_rate": 0.005,
        "batch_size": 64,
        "microbatch": 32,
        "epochs": 5,
    },
    objects="tensorflow_ranger_cli.tasks.models.ctc",
)
