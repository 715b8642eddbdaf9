"""`python -m nitrodistill`, and so `torchrun -m nitrodistill`: the command line."""

import sys

from nitrodistill.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
