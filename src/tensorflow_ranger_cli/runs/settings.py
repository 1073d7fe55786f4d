"""The settings of a run: what makes its result."""

import dataclasses
import math

from tensorflow_ranger_cli.errors import UsageError
from tensorflow_ranger_cli.options import AUTO
from tensorflow_ranger_cli.tasks import registry

# For a few hundred updates. Other optimizers keep their own.
LEARNING_RATES = {"sgd": 0.03, "radam": 0.003, "ranger": 0.003, "ranger21": 0.003}
MAY_DIFFER = ("epochs", "memory_limit")  # between a run and its resumption
ADDED = {"lookahead": "Lookahead", "centralize": "centralized gradients"}
HAVE_ADDED = ("ranger", "ranger21")


@dataclasses.dataclass(frozen=True)
class Settings:
    """Options of ``tensorflow-ranger train`` that decide what a run computes.

    Args:
        task: Name of the task.
        optimizer: Name of the optimizer that makes the updates: Keras' identifier, or "radam",
            "ranger" or "ranger21".
        lookahead: Whether Lookahead is added to the optimizer.
        centralize: Whether centralization of the gradients is added to the optimizer.
        accumulation_steps: Micro-batches per window.
        batch_size: Samples per micro-batch; with `microbatch`, samples per update.
        epochs: Epochs to train, counted from the beginning.
        learning_rate: None keeps the optimizer's own, but for those in `LEARNING_RATES`.
        backend: Name of the Keras backend. None until Keras has chosen.
        seed: Of the initial weights and the order of the data.
        microbatch: Samples per micro-batch of a whole batch, or "auto". None makes each batch a
            micro-batch.
        memory_limit: Bytes that training may need, or None. It decides nothing but the size that
            "auto" finds.
        trim_padding: Whether micro-batches are trimmed to their longest sample.
        noise_scale: Whether the noise scale is measured. Sums go another way then, and differ in
            rounding.
    """

    task: str = registry.DEFAULT
    optimizer: str = "sgd"
    lookahead: bool = False
    centralize: bool = False
    accumulation_steps: int = 4
    batch_size: int = 32
    epochs: int = 10
    learning_rate: float | None = None
    backend: str | None = None
    seed: int = 0
    microbatch: int | str | None = None
    memory_limit: int | None = None
    trim_padding: bool = False
    noise_scale: bool = False

    @classmethod
    def names(cls):
        """Return the names of the settings."""
        return [field.name for field in dataclasses.fields(cls)]

    @classmethod
    def new(cls, given):
        """Return the settings of a new run.

        Args:
            given: Dict with the options that were given, by setting.

        Raises:
            UsageError: Options contradict each other.
        """
        settings = cls(**_defaults(given) | given)
        if settings.microbatch is not None:
            accumulation_steps = given.get("accumulation_steps", 1)
            if accumulation_steps != 1:
                raise UsageError(
                    "--accumulation-steps must be 1 beside --microbatch, which makes one update of "
                    f"each batch: got {accumulation_steps}. Leave it out, and give the "
                    f"{settings.samples} of an update by --batch-size"
                )
            settings = dataclasses.replace(settings, accumulation_steps=1)
        if settings.learning_rate is None:
            learning_rate = LEARNING_RATES.get(settings.optimizer.lower())
            settings = dataclasses.replace(settings, learning_rate=learning_rate)
        return settings.checked()

    def resume(self, given, epochs_done):
        """Return the settings with which a stopped run goes on.

        Args:
            given: Dict with the options that were given, by setting.
            epochs_done: Epochs the run has trained.

        Raises:
            UsageError: An option contradicts the run, or asks for fewer epochs than it has, or
                for another number than its learning rate was planned for, or limits the memory of
                a size that was given.
        """
        for name, value in given.items():
            stored = getattr(self, name)
            if name not in MAY_DIFFER and value != stored:
                if name in ADDED:
                    self._refuse_added(name)
                option = "TASK" if name == "task" else "--" + name.replace("_", "-")
                unset = "the optimizer's own" if name == "learning_rate" else "none"
                held = unset if stored is None or stored is False else stored
                got = option if value is True else value
                raise UsageError(
                    f"{option} contradicts the run to resume: got {got}, the run has {held}. "
                    f"Leave {option} out, or begin a new run with another --output"
                )
        epochs = given.get("epochs", self.epochs)
        if epochs != self.epochs and self.optimizer.lower() == "ranger21":
            raise UsageError(
                f"--epochs must stay {self.epochs}, as the learning rate of ranger21 rises and "
                f"falls with the length of the run: got {epochs}. Leave --epochs out, or begin a "
                "new run with another --output"
            )
        if epochs < epochs_done:
            raise UsageError(
                f"--epochs must be at least {epochs_done}, which the run has trained already: "
                f"got {epochs}. Leave --epochs out, or give more to train on"
            )
        memory_limit = given.get("memory_limit", self.memory_limit)
        return dataclasses.replace(self, epochs=epochs, memory_limit=memory_limit).checked()

    def on(self, backend):
        """Return the settings with the backend that Keras runs on."""
        return dataclasses.replace(self, backend=backend)

    def total_updates(self, samples):
        """Return the updates of the whole run: windows span epochs, and a rest makes one, too.

        Args:
            samples: Training samples in an epoch.
        """
        batches = self.epochs * math.ceil(samples / self.batch_size)
        return math.ceil(batches / self.accumulation_steps)

    @property
    def optimizer_in_words(self):
        """The optimizer, and what is added to it."""
        added = " and ".join(words for name, words in ADDED.items() if getattr(self, name))
        return f"{self.optimizer} with {added}" if added else self.optimizer

    @property
    def batch_in_words(self):
        """What makes one update."""
        if self.microbatch is None:
            return f"{self.accumulation_steps} micro-batches of {self.batch_size}"
        size = "the fastest size" if self.microbatch == AUTO else self.microbatch
        return f"{self.batch_size} {self.samples} in micro-batches of {size}"

    @property
    def samples(self):
        """What the samples of the task are called."""
        return registry.find(self.task).samples

    def _refuse_added(self, name):
        if self.optimizer.lower() in HAVE_ADDED:
            raise UsageError(
                f"--{name} is built into {self.optimizer}: got both. Leave --{name} out, or choose "
                "an --optimizer without it, such as radam"
            )

    def _check_padding(self):
        if registry.find(self.task).padding is None:
            raise UsageError(
                "--trim-padding is for tasks whose samples are padded, such as reviews: got "
                f"{self.task}. Leave --trim-padding out"
            )
        for other, contradicts in {
            "without --microbatch, which cuts the batch": self.microbatch is None,
            "with --noise-scale, which needs samples in random order": self.noise_scale,
        }.items():
            if contradicts:
                raise UsageError(
                    f"--trim-padding sorts a batch by length and cuts it: got it {other}. "
                    "Leave --trim-padding out"
                )

    def checked(self):
        """Return these settings.

        Raises:
            UsageError: Some of them contradict one another.
        """
        for name in ADDED:
            if getattr(self, name):
                self._refuse_added(name)
        if self.memory_limit is not None and self.microbatch != AUTO:
            got = (
                "no --microbatch" if self.microbatch is None else f"--microbatch {self.microbatch}"
            )
            raise UsageError(
                f"--memory-limit is for --microbatch auto: got {got}. Leave one out, or give auto"
            )
        if isinstance(self.microbatch, int) and self.microbatch > self.batch_size:
            raise UsageError(
                f"--microbatch must be <= --batch-size, which is {self.batch_size}: "
                f"got {self.microbatch}. Give the {self.samples} of an update by --batch-size"
            )
        if self.trim_padding:
            self._check_padding()
        whole = (
            self.accumulation_steps == 1
            if self.microbatch is None
            else (self.microbatch == self.batch_size)
        )
        if self.noise_scale and whole:
            raise UsageError(
                "--noise-scale compares the micro-batches of an update: got one, of "
                f"{self.batch_size} {self.samples}. Give a smaller --microbatch, or 2 or more by "
                "--accumulation-steps"
            )
        return self


def _defaults(given):
    """Return the task's own settings, as far as they go with the options that were given.

    They were chosen together: with another optimizer the learning rate is that optimizer's. Who
    gives the micro-batches of an update by --accumulation-steps wants no --microbatch; these are
    then as large as the task's.
    """
    defaults = dict(registry.find(given.get("task", registry.DEFAULT)).defaults)
    if given.get("optimizer", defaults.get("optimizer")) != defaults.get("optimizer"):
        defaults.pop("learning_rate", None)
    size = defaults.get("microbatch")
    if size is None or "microbatch" in given:
        return defaults
    if "accumulation_steps" in given:
        del defaults["microbatch"]
        defaults["batch_size"] = size
    else:
        defaults["microbatch"] = min(size, given.get("batch_size", size))
    return defaults
