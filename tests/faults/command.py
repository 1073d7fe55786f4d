"""``tensorflow-ranger`` on few digits, which dies at a chosen moment.

    KILLED="9 0.02 1" python -m tests.faults.command train --epochs 3

kills the process of RANK 1, 0.02 seconds after it has recorded nine micro-batches. A launcher that
starts it again finds it in good health.
"""

import os
import signal
import sys
import threading

from tensorflow_ranger_cli.main import main
from tensorflow_ranger_cli.runs.update_history import UpdateHistory
from tests.application import runs


def die_at(micro_batches, delay):
    """Let this process be killed `delay` seconds after it has recorded so many micro-batches."""
    record = UpdateHistory.on_train_batch_end

    def record_and_die(self, batch, logs=None):
        record(self, batch, logs)
        if len(self.micro_batches) == micro_batches:
            threading.Timer(delay, os.kill, (os.getpid(), signal.SIGKILL)).start()

    UpdateHistory.on_train_batch_end = record_and_die


def run(arguments, killed=None):
    """Run the command line on few digits; return the exit code.

    Args:
        arguments: List of strings.
        killed: Tuple ``(micro_batches, delay)`` for `die_at`, or None.
    """
    runs.use_few_digits()
    if killed is not None:
        die_at(*killed)
    return main(arguments)


if __name__ == "__main__":
    killed = None
    if "KILLED" in os.environ and os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") == "0":
        micro_batches, delay, process = os.environ["KILLED"].split()
        if process == os.environ["RANK"]:
            killed = int(micro_batches), float(delay)
    sys.exit(run(sys.argv[1:], killed))
