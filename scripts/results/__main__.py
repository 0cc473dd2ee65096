"""`python -m scripts.results` keeps what runs/studies has in docs/results and writes the page."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

from matplotlib.figure import Figure

from copd.storage import write_atomically
from scripts.results import figures, measured
from scripts.results.keeping import keep
from scripts.results.page import page
from scripts.results.reading import WORLDS, Found, find


def draw(found: Mapping[str, Found], folder: Path) -> dict[str, str]:
    """All figures that the finished studies allow; name to path relative to the page."""
    drawn = {}

    def save(name: str, what: Callable[[Figure], None], size: tuple[float, float]) -> None:
        figures.save(folder / f"{name}.svg", what, size=size)
        drawn[name] = f"{folder.name}/{name}.svg"

    worlds = {w: found[name].summary for w, name in WORLDS.items() if name in found}
    if worlds:
        save("worlds", partial(figures.accuracies, studies=worlds), (4.2 * len(worlds), 3.4))
    for name, label in (("ratio", "S_RL : S_OPD"), ("beta", "beta")):
        if name in found:
            own = found[name].summary
            save(name, partial(figures.sweep, summary=own, label=label), (5, 3))
    if "dynamics" in found:
        curves = measured.dynamics(found["dynamics"])
        save("dynamics", partial(figures.dynamics, curves=curves), (8, 5.5))
    if "divergence" in found:
        curves = measured.cosines(found["divergence"])
        save("divergence", partial(figures.cosines, curves=curves), (5, 3))
    if "pilot" in found and (taught := measured.pilot(found["pilot"])):
        runs, fit = taught
        save("pilot", partial(figures.pilot, runs=runs, found=fit), (5, 3.5))
    return drawn


def main(argv: Sequence[str] | None = None) -> int:
    """Keeps results and writes the page from all kept ones; what is not there is named on it."""
    parser = argparse.ArgumentParser(prog="python -m scripts.results", description=__doc__)
    parser.add_argument("--studies", type=Path, default=Path("runs/studies"), help="where they ran")
    parser.add_argument("--docs", type=Path, default=Path("docs"), help="where the page goes")
    arguments = parser.parse_args(argv)
    kept = arguments.docs / "results"
    try:
        keep(arguments.studies, kept)
    except ValueError as error:
        print(error, file=sys.stderr)
        return 1
    found = find(kept)
    if not found:
        print(f"no study below {arguments.studies} or {kept} has results.json", file=sys.stderr)
        return 1
    drawn = draw(found, arguments.docs / "figures")
    write_atomically(arguments.docs / "results.md", page(found, drawn))
    print(f"wrote {arguments.docs / 'results.md'} from {', '.join(found)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
