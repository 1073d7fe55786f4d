"""A run of ``tensorflow-ranger train``: from its settings to its results."""

import importlib
import os
import shlex
import sys

from tensorflow_ranger_cli import interrupts
from tensorflow_ranger_cli.errors import CommandError, UsageError
from tensorflow_ranger_cli.options import AUTO
from tensorflow_ranger_cli.runs import result
from tensorflow_ranger_cli.runs.optimizer import build_optimizer
from tensorflow_ranger_cli.silence import silent_stderr


class Run:
    """A run, or its share in one of several processes.

    Args:
        task: `Task`.
        directory: `RunDirectory`.
        settings: `Settings` with a backend.
        record: Arguments of the `UpdateHistory` so far. Empty for a new run.
        choice: The micro-batch chosen so far, as `RunDirectory.write_checkpoint` takes it.
        launched: `Launch`.
        engine: The backend's `Engine`.

    Attributes:
        updates: Updates made in all, once the model is trained.
    """

    def __init__(self, task, directory, settings, record, choice, launched, engine):
        self._task = task
        self._directory = directory
        self._settings = settings
        self._record = record
        self._choice = choice
        self._launched = launched
        self._engine = engine
        self._together = launched.processes > 1 or engine.devices > 1
        self._writes = launched.process == 0
        self.updates = 0

    def train(self):
        """Train the model, write the results and print them.

        Returns:
            The task's figures, as `Task.judge` returns them, or None in a process that does not
            write.

        Raises:
            UsageError: The settings don't suit several processes.
            CommandError: A file cannot be written, or memory ran out.
        """
        import keras

        from tensorflow_ranger_cli.runs.shuffled_batches import count
        from tensorflow_ranger_cli.runs.update_history import UpdateHistory

        directory, settings = self._directory, self._settings
        (x, y), held_out = self._task.load()
        samples = count(x)
        self._check_rows(samples)
        self._history = UpdateHistory(**self._record)
        # Saving and loading make Keras import TensorFlow, where it is installed, on any backend.
        with silent_stderr():
            model = self._model(samples)
            self._engine.meet()  # all have read what one now writes anew
            directory.write_checkpoint(
                model, settings, self._history, self._choice, directory.measured
            )
        directory.write_settings(settings, self._choice)
        directory.write_history(self._history.epochs, self._task.metrics)
        self._use_micro_batches(model)
        self._announce()
        self._measure(samples)
        evaluation = self._evaluation(model, held_out)
        self._fit(model, x, y, held_out, evaluation)
        directory.write_model(model)
        self._choice = self._chosen(model)
        directory.write_settings(settings, self._choice)
        if not self._writes:
            return None
        self.updates = int(keras.ops.convert_to_numpy(model.optimizer.iterations))
        judged = self._judged(model, held_out, evaluation)
        stored = result.record(judged, self.updates)
        directory.write_result(stored)
        self._conclude(stored)
        return judged

    def _judged(self, model, held_out, evaluation):
        if evaluation:
            return evaluation.judge(model)
        results = model.evaluate(*held_out, verbose=0, return_dict=True)
        return self._task.judge(model, held_out, results)

    def _model(self, samples):
        with self._engine.scope():
            if self._record:
                if self._task.objects is not None:
                    importlib.import_module(self._task.objects)
                return self._directory.load_model()
            settings = self._settings
            model = self._task.build_model(settings.seed)
            optimizer = build_optimizer(settings, settings.total_updates(samples))
            model.compile(optimizer, **self._task.compile_arguments())
            optimizer.build(model.trainable_variables)
            return model

    def _check_rows(self, samples):
        settings, processes = self._settings, self._launched.processes
        if processes == 1:
            return
        if settings.microbatch == AUTO:
            raise UsageError(
                f"--microbatch auto is measured by one process: got {processes}. Find the size "
                "with one of them, and give the integer"
            )
        batches = {"--batch-size": settings.batch_size}
        rest = samples % settings.batch_size
        if rest:
            batches["the last batch of an epoch"] = rest
        for name, size in batches.items():
            if size < processes or (self._engine.equal_rows and size % processes):
                wanted = "a multiple of" if self._engine.equal_rows else "at least"
                words = self._task.samples
                raise UsageError(
                    f"{name} must be {wanted} the {processes} processes: got {size} {words}, "
                    f"{samples} in an epoch. Choose another --batch-size or number of processes"
                )

    def _announce(self):
        words = self._launched.in_words(self._engine.devices)
        if words is not None:
            print(words)
        done = len(self._history.epochs)
        print(
            f"{f'Resuming after epoch {done}' if done else 'Training'}: "
            f"{self._settings.optimizer_in_words} on {self._settings.backend}, "
            f"{self._settings.batch_in_words} make one update"
        )

    def _use_micro_batches(self, model):
        from tensorflow_ranger import microbatch

        settings = self._settings
        if settings.microbatch is not None:
            microbatch(
                model,
                settings.microbatch,
                memory_limit=settings.memory_limit,
                padding=self._task.padding if settings.trim_padding else None,
            )
        elif self._together:
            # Keras' own step would weigh the processes alike, whose parts may differ.
            microbatch(model, -(-settings.batch_size // self._launched.processes))

    def _measure(self, samples):
        """Make the callbacks that measure."""
        from tensorflow_ranger.callbacks import NoiseScale
        from tensorflow_ranger_cli import frameworks
        from tensorflow_ranger_cli.runs.measurements import Measurements

        settings = self._settings
        # Where micro-batches are cut from a batch, they tell their samples themselves.
        size = settings.batch_size if settings.microbatch is None else None
        self._noise = NoiseScale(size, verbose=False) if settings.noise_scale else None
        devices = self._launched.in_words(self._engine.devices) or ", ".join(frameworks.devices())
        self._measurements = Measurements(samples, devices, self._directory.measured, self._noise)

    def _evaluation(self, model, held_out):
        """Return the callback that evaluates the model, or None where `fit` does it."""
        from tensorflow_ranger_cli.runs.held_out import HeldOut

        together = self._together and self._writes
        return HeldOut(model, held_out, self._task, self._engine) if together else None

    def _fit(self, model, x, y, held_out, evaluation):
        import keras

        from tensorflow_ranger_cli.runs.progress import EpochLines, shows_bars
        from tensorflow_ranger_cli.runs.shuffled_batches import OwnRows, ShuffledBatches

        batches = rows = ShuffledBatches(x, y, self._settings.batch_size, self._settings.seed)
        if self._engine.own_rows and self._launched.processes > 1:
            rows = OwnRows(batches, self._launched.processes, self._launched.process)
        bars = shows_bars(sys.stdout, os.environ)
        validation = {} if self._together else {"validation_data": held_out}
        callbacks = [
            batches.order_callback(),
            *([evaluation] if evaluation else []),
            *([self._noise] if self._noise else []),
            self._history,
            self._measurements,
            *([] if bars else [EpochLines()]),
            # `fit` closes the window thereafter.
            keras.callbacks.LambdaCallback(on_epoch_end=lambda epoch, logs: self._keep(model)),
        ]
        try:
            with interrupts.remembered() as raise_again:
                stop = keras.callbacks.LambdaCallback(
                    on_train_batch_end=lambda batch, logs: raise_again()
                )
                model.fit(
                    rows,
                    shuffle=False,  # the batches are in an order of their own
                    initial_epoch=len(self._history.epochs),
                    epochs=self._settings.epochs,
                    callbacks=[*callbacks, stop],
                    verbose=1 if bars else 0,
                    **validation,
                )
        except KeyboardInterrupt:
            if bars:
                print()  # the bar's line has no end
            raise
        except MemoryError as error:
            raise CommandError(str(error)) from error

    def _keep(self, model):
        self._directory.write_checkpoint(
            model, self._settings, self._history, self._chosen(model), self._measurements.record
        )
        self._directory.write_history(self._history.epochs, self._task.metrics)

    def _chosen(self, model):
        """Return what is recorded of the micro-batch in use, or the last before there is one."""
        plan = getattr(model, "microbatch_plan", None)
        if self._settings.microbatch is None or plan is None or plan.chosen is None:
            return self._choice
        return {"chosen": plan.chosen, "reason": plan.reason}

    def _conclude(self, stored):
        if self._choice is not None:
            print(f"Micro-batches of {self._choice['chosen']}. {self._choice['reason']}")
        if self._noise is not None:
            print(self._measurements.record["noise_advice"])
        difference = result.difference_in_words(stored, self._history.epochs)
        if difference is not None:
            print(difference)
        path = self._directory.path
        print(
            f"Held-out {result.in_words(result.figures(stored, self._task))}. "
            f"Model, history and settings are in {path}: "
            f"{', '.join(file.name for file in self._directory.results)}. "
            f"Look at it with: tensorflow-ranger report {shlex.quote(str(path))}"
        )
