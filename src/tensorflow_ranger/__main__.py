"""``python -m tensorflow_ranger``: the command line."""

import sys

from tensorflow_ranger_cli.main import main

sys.exit(main())
