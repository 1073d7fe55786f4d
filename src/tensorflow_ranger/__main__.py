"""``python -m tensorflow_ranger``: runs the application in a fresh interpreter.

To find this file Python has imported the package, and thereby Keras on some backend. The
application chooses the backend before it imports Keras, so it needs an interpreter of its own.
"""

import os
import subprocess
import sys

COMMAND = [sys.executable, "-m", "tensorflow_ranger_cli", *sys.argv[1:]]

if __name__ == "__main__":
    if os.name == "nt":
        # Windows' `execv` starts a second process, and the shell does not wait for it.
        sys.exit(subprocess.run(COMMAND, check=False).returncode)
    os.execv(sys.executable, COMMAND)
