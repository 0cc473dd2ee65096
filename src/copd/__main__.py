"""Run the command line as `python -m copd`."""

import sys

from copd.cli import main

if __name__ == "__main__":
    sys.exit(main())
