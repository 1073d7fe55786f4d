"""The settings of a run: what makes its result."""

import dataclasses

from tensorflow_ranger.cli.errors import UsageError

SGD_LEARNING_RATE = 0.05


@dataclasses.dataclass(frozen=True)
class Settings:
    """Options of ``tensorflow-ranger train`` that decide what a run computes.

    Args:
        optimizer: Keras identifier of the inner optimizer.
        accumulation_steps: Micro-batches per window.
        batch_size: Samples per micro-batch.
        epochs: Epochs to train, counted from the beginning.
        learning_rate: None keeps the inner optimizer's own, but for SGD's, which is ours.
        backend: Name of the Keras backend. None until Keras has chosen.
        seed: Of the initial weights and the order of the data.
    """

    optimizer: str = "sgd"
    accumulation_steps: int = 4
    batch_size: int = 32
    epochs: int = 8
    learning_rate: float | None = None
    backend: str | None = None
    seed: int = 0

    @classmethod
    def names(cls):
        """Return the names of the settings."""
        return [field.name for field in dataclasses.fields(cls)]

    @classmethod
    def new(cls, given):
        """Return the settings of a new run.

        Args:
            given: Dict with the options that were given, by setting.
        """
        settings = cls(**given)
        if settings.learning_rate is None and settings.optimizer.lower() == "sgd":
            settings = dataclasses.replace(settings, learning_rate=SGD_LEARNING_RATE)
        return settings

    def resume(self, given, epochs_done):
        """Return the settings with which a stopped run goes on.

        Args:
            given: Dict with the options that were given, by setting.
            epochs_done: Epochs the run has trained.

        Raises:
            UsageError: An option contradicts the run, or asks for fewer epochs than it has.
        """
        for name, value in given.items():
            stored = getattr(self, name)
            if name != "epochs" and value != stored:
                option = "--" + name.replace("_", "-")
                held = "the optimizer's own" if stored is None else stored
                raise UsageError(
                    f"{option} contradicts the run to resume: got {value}, the run has {held}. "
                    f"Leave {option} out, or begin a new run with another --output"
                )
        epochs = given.get("epochs", self.epochs)
        if epochs < epochs_done:
            raise UsageError(
                f"--epochs must be at least {epochs_done}, which the run has trained already: "
                f"got {epochs}. Leave --epochs out, or give more to train on"
            )
        return dataclasses.replace(self, epochs=epochs)

    def on(self, backend):
        """Return the settings with the backend that Keras runs on."""
        return dataclasses.replace(self, backend=backend)
