"""``python -m tensorflow_ranger_cli``: the ``tensorflow-ranger`` command."""

import sys

from tensorflow_ranger_cli.main import main

if __name__ == "__main__":
    sys.exit(main())
