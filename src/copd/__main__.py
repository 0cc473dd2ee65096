"""`python -m copd` is `copd`."""

import sys

from copd.cli import main

if __name__ == "__main__":
    sys.exit(main())
