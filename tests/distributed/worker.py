"""One process of a distributed run; started by `launch.py`.

    python -m tests.distributed.worker ENGINE FOLDER CASE...

trains the cases under the engine and writes what they came to to ``FOLDER/PROCESS.json``.
"""

import json
import sys
from pathlib import Path

from tests.distributed.engines import ENGINES


def main(engine, folder, *names):
    """Train the cases in `names`."""
    with ENGINES[engine]() as here:
        from tests.distributed import cases, observations

        results = {}
        for name in names:
            if name in cases.CASES:
                case = cases.CASES[name]
                with here.counted():
                    result, model = cases.run(case, here)
                result["collectives"] = here.collectives(model, cases.first_batch(case, here))
            else:
                result = getattr(observations, name)(here, Path(folder))
            results[name] = result
        (Path(folder) / f"{here.process}.json").write_text(json.dumps(results))


if __name__ == "__main__":
    main(*sys.argv[1:])
