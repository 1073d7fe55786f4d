"""Short texts: tweet, film review, product review or newspaper."""

from tensorflow_ranger_cli.tasks.data import reviews
from tensorflow_ranger_cli.tasks.task import Figure, Task


def load():
    """Return the texts and their domains.

    Returns:
        ``((x, y), (x, y))`` for the training and 3,000 held-out texts: words and domains, as
        `tensorflow_ranger_cli.tasks.data.reviews.load` returns them.

    Raises:
        CommandError: The data is missing or another.
    """
    training, held_out = ((words, domains) for words, domains, _ in reviews.load())
    return training, held_out


def build_model(seed):
    """Return a classifier of the mean over the words of a text, which masks tell from padding.

    Args:
        seed: Integer >= 0; the initial weights and the dropout are functions of it alone.
    """
    import keras

    from tensorflow_ranger_cli.tasks.models import texts

    words, features, seeded = texts.read_words(seed)
    classes = seeded.dense(len(reviews.DOMAINS), activation="softmax", name="domain")
    return keras.Model(words, classes(features))


def compile_arguments():
    """Return loss and metric."""
    return {"loss": "sparse_categorical_crossentropy", "metrics": ["accuracy"]}


def predict(model, arguments):
    """Return a line for each text or text file: its likely domain, and how sure the model is.

    Raises:
        UsageError: An argument is neither a text file nor a text.
    """
    from tensorflow_ranger_cli.tasks.data.arguments import text_of

    numbers = reviews.encode([text_of(argument) for argument in arguments])
    probabilities = model.predict(numbers, verbose=0)
    return [f"{reviews.DOMAINS[row.argmax()]} ({row.max():.1%})" for row in probabilities]


TASK = Task(
    name="reviews",
    title="Reviews",
    summary="23,703 short texts of four kinds, a classifier with masks",
    samples="texts",
    data=reviews.FILE,
    load=load,
    build_model=build_model,
    compile_arguments=compile_arguments,
    metrics=("accuracy",),
    figures=(Figure("accuracy", "accuracy", "{:.1%}", bar=0.84),),
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
