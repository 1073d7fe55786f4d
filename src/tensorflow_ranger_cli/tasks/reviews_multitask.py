"""Short texts again: kind and sentiment at the same time, two outputs of one model."""

from tensorflow_ranger_cli.tasks.data import reviews
from tensorflow_ranger_cli.tasks.task import Figure, Task

OUTPUTS = {"domain": reviews.DOMAINS, "sentiment": reviews.SENTIMENTS}


def load():
    """Return the texts, and a dict of their domains and sentiments.

    Returns:
        ``((x, y), (x, y))`` for the training and 3,000 held-out texts, with what
        `tensorflow_ranger_cli.tasks.data.reviews.load` returns.

    Raises:
        CommandError: The data is missing or another.
    """
    training, held_out = (
        (words, {"domain": domains, "sentiment": sentiments})
        for words, domains, sentiments in reviews.load()
    )
    return training, held_out


def build_model(seed, outputs=tuple(OUTPUTS)):
    """Return a classifier of the mean over the words of a text, with two outputs.

    Args:
        seed: Integer >= 0; the initial weights and the dropout are functions of it alone.
        outputs: Names of the outputs: both, or one alone to compare with.
    """
    import keras

    from tensorflow_ranger_cli.tasks.models import texts

    words, features, seeded = texts.read_words(seed)
    classes = {
        name: seeded.dense(len(OUTPUTS[name]), activation="softmax", name=name)(features)
        for name in outputs
    }
    return keras.Model(words, classes)


def compile_arguments(outputs=tuple(OUTPUTS)):
    """Return losses and metrics of the outputs.

    Args:
        outputs: As in `build_model`.
    """
    return {
        "loss": dict.fromkeys(outputs, "sparse_categorical_crossentropy"),
        "metrics": {name: ["accuracy"] for name in outputs},
    }


def predict(model, arguments):
    """Return a line for each text or text file: its likely domain and sentiment.

    Raises:
        UsageError: An argument is neither a text file nor a text.
    """
    from tensorflow_ranger_cli.tasks.data.arguments import text_of

    numbers = reviews.encode([text_of(argument) for argument in arguments])
    probabilities = model.predict(numbers, verbose=0)
    return [
        ", ".join(
            f"{OUTPUTS[name][rows[i].argmax()]} ({rows[i].max():.1%})"
            for name, rows in probabilities.items()
        )
        for i in range(len(arguments))
    ]


TASK = Task(
    name="reviews-multitask",
    title="Reviews, two tasks",
    summary="kind and sentiment of 23,703 short texts, one model with two outputs",
    samples="texts",
    data=reviews.FILE,
    load=load,
    build_model=build_model,
    compile_arguments=compile_arguments,
    metrics=("domain_accuracy", "sentiment_accuracy"),
    figures=(
        Figure("domain accuracy", "domain_accuracy", "{:.1%}", bar=0.83),
        Figure("sentiment accuracy", "sentiment_accuracy", "{:.1%}", bar=0.64),
    ),
    defaults={
        "optimizer": "adam",
        "learning_rate": 0.002,
        "batch_size": 256,
        "microbatch": 64,
        "epochs": 8,
    },
    padding=reviews.PADDING,
    predict=predict,
    predicts="text files or texts",
)
