"""One checkpoint written, between two marks that a trace of system calls shows: what `calls.py` lets fail.

python writing.py RUN: loads the run's newest checkpoint, changes every number, and saves it as the next update.
"""

import os
import sys
from pathlib import Path

from refimpl import checkpoint

BEGIN, END = "/refimpl-begins", "/refimpl-ends"


def main(run: Path) -> int:
    """Exit status 3 if the system refused, as the command has it."""
    saved = checkpoint.load(run)
    saved.parameters.vector += 1
    saved.optimizer.updates += 1
    os.access(BEGIN, os.F_OK)
    try:
        checkpoint.save(run, saved)
    except OSError as error:
        print(error)
        return 3
    os.access(END, os.F_OK)
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
