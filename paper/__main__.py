"""Collect the results of runs/studies in paper/results and write paper/results.md."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from copd.storage import write_atomically
from paper.collect import collect
from paper.load import find
from paper.page import page
from paper.plots import draw


def main(argv: Sequence[str] | None = None) -> int:
    """Collect results and write the page from all that are there; it names what is missing."""
    parser = argparse.ArgumentParser(prog="python -m paper", description=__doc__)
    parser.add_argument("--studies", type=Path, default=Path("runs/studies"), help="where they ran")
    parser.add_argument("--folder", type=Path, default=Path("paper"), help="where the page goes")
    arguments = parser.parse_args(argv)
    folder, results = arguments.folder, arguments.folder / "results"
    try:
        collect(arguments.studies, results)
    except ValueError as error:
        print(error, file=sys.stderr)
        return 1
    found = find(results)
    if not found:
        print(f"no study below {arguments.studies} or {results} has results.json", file=sys.stderr)
        return 1
    figures = draw(found, folder / "figures")
    write_atomically(folder / "results.md", page(found, figures))
    print(f"wrote {folder / 'results.md'} from {', '.join(found)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
