"""`python -m paper` keeps what runs/studies has in paper/results and writes the page."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

from matplotlib.figure import Figure

from copd.storage import write_atomically
from paper import measures, plots
from paper.collect import keep
from paper.load import WORLDS, Found, find
from paper.page import page


def draw(found: Mapping[str, Found], folder: Path) -> dict[str, str]:
    """All figures that the finished studies allow; name to path relative to the page."""
    drawn = {}

    def save(name: str, what: Callable[[Figure], None], size: tuple[float, float]) -> None:
        plots.save(folder / f"{name}.svg", what, size=size)
        drawn[name] = f"{folder.name}/{name}.svg"

    worlds = {w: found[name].summary for w, name in WORLDS.items() if name in found}
    if worlds:
        save("worlds", partial(plots.accuracies, studies=worlds), (4.2 * len(worlds), 3.4))
    for name, label in (("ratio", "S_RL : S_OPD"), ("beta", "beta")):
        if name in found:
            own = found[name].summary
            save(name, partial(plots.sweep, summary=own, label=label), (5, 3))
    if "dynamics" in found:
        curves = measures.dynamics(found["dynamics"])
        save("dynamics", partial(plots.dynamics, curves=curves), (8, 5.5))
    if "divergence" in found:
        curves = measures.cosines(found["divergence"])
        save("divergence", partial(plots.cosines, curves=curves), (5, 3))
    if "pilot" in found and (taught := measures.pilot(found["pilot"])):
        runs, fit = taught
        save("pilot", partial(plots.pilot, runs=runs, found=fit), (5, 3.5))
    return drawn


def main(argv: Sequence[str] | None = None) -> int:
    """Keeps results and writes the page from all kept ones; what is not there is named on it."""
    parser = argparse.ArgumentParser(prog="python -m paper", description=__doc__)
    parser.add_argument("--studies", type=Path, default=Path("runs/studies"), help="where they ran")
    parser.add_argument("--folder", type=Path, default=Path("paper"), help="where the page goes")
    arguments = parser.parse_args(argv)
    kept = arguments.folder / "results"
    try:
        keep(arguments.studies, kept)
    except ValueError as error:
        print(error, file=sys.stderr)
        return 1
    found = find(kept)
    if not found:
        print(f"no study below {arguments.studies} or {kept} has results.json", file=sys.stderr)
        return 1
    drawn = draw(found, arguments.folder / "figures")
    write_atomically(arguments.folder / "results.md", page(found, drawn))
    print(f"wrote {arguments.folder / 'results.md'} from {', '.join(found)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
