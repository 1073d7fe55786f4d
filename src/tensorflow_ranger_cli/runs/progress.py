"""What a run shows while it trains: Keras' bars on a terminal, else a line for each epoch."""

import time

import keras


def shows_bars(stream, environment):
    """Return whether progress bars, which move the cursor and have colors, suit the output.

    Args:
        stream: What is written to.
        environment: Mapping such as `os.environ`. ``NO_COLOR`` (https://no-color.org) and
            ``TERM=dumb`` ask for plain text.
    """
    plain = environment.get("NO_COLOR") or environment.get("TERM") == "dumb"
    return stream.isatty() and not plain


class EpochLines(keras.callbacks.Callback):
    """Prints one line for each epoch: its number, its seconds and its logs.

    It must come after the callbacks that add to the logs.
    """

    def on_epoch_begin(self, epoch, logs=None):
        """Begin an epoch's time."""
        self._begun = time.perf_counter()

    def on_epoch_end(self, epoch, logs=None):
        """Print the epoch's line."""
        seconds = time.perf_counter() - self._begun
        values = "".join(f" - {name}: {value:.4f}" for name, value in (logs or {}).items())
        print(f"Epoch {epoch + 1}/{self.params['epochs']} - {seconds:.1f} s{values}", flush=True)
