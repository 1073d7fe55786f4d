"""Spoken digits, written out: a bidirectional GRU spells the word."""

from tensorflow_ranger_cli.tasks.data import recordings
from tensorflow_ranger_cli.tasks.task import Figure, Task

LETTERS = "".join(sorted(set("".join(recordings.WORDS))))


def load():
    """Return the recordings and the letters of what is said.

    Returns:
        ``((x, y), (x, y))`` for 2,500 training and 500 held-out recordings: frames as
        `recordings.load` returns them, and int32 rows of the number of real frames, then the
        letters, numbered from 1, then zeros.

    Raises:
        CommandError: The data is missing or another.
    """
    from tensorflow_ranger_cli.tasks.models import ctc

    spelled = [[1 + LETTERS.index(letter) for letter in word] for word in recordings.WORDS]
    training, held_out = (
        (frames, ctc.targets(lengths, [spelled[digit] for digit in digits]))
        for frames, lengths, digits in recordings.load()
    )
    return training, held_out


def build_model(seed):
    """Return a bidirectional GRU of two layers, with logits for each letter and for none.

    Args:
        seed: Integer >= 0; the initial weights are a function of it alone.
    """
    from tensorflow_ranger_cli.tasks.models import ctc

    return ctc.build_model(seed, (recordings.FRAMES, recordings.COEFFICIENTS), len(LETTERS))


def compile_arguments():
    """Return the loss, and the metric that counts whole words."""
    from tensorflow_ranger_cli.tasks.models import ctc

    return ctc.compile_arguments()


TASK = Task(
    name="spoken-digits",
    title="Spoken digits",
    summary="3,000 spoken digits, a bidirectional GRU that spells them (CTC)",
    samples="recordings",
    data=recordings.FILE,
    load=load,
    build_model=build_model,
    compile_arguments=compile_arguments,
    metrics=("all_right",),
    figures=(Figure("whole words right", "all_right", "{:.1%}", bar=0.95),),
    defaults={
        "optimizer": "adam",
        "learning_rate": 0.003,
        "batch_size": 64,
        "microbatch": 32,
        "epochs": 16,
    },
    objects="tensorflow_ranger_cli.tasks.models.ctc",
)
