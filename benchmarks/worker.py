"""One side of one case in a process of its own: `python -m benchmarks.worker SIDE CASE FOLDER`.

Started and spoken to by benchmarks/cpu.py; OMP_NUM_THREADS says how many threads it has.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import get_args

from benchmarks import floor, ours, repeated, steps
from benchmarks.cases import CASES, Side
from benchmarks.turns import open_turns


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("side", choices=get_args(Side))
    parser.add_argument("case", choices=list(CASES))
    parser.add_argument("folder", type=Path)
    parser.add_argument(
        "--micro-batch", type=int, default=0, help="rows, or tokens of ours; 0 is all"
    )
    words = parser.parse_args()
    case, turns = CASES[words.case], open_turns()
    if words.side == "ours":
        ours.take_turns(case, words.folder, turns, micro_batch=words.micro_batch)
    elif words.side == "parts":
        ours.take_turns_in_parts(case, words.folder, turns)
    elif words.side == "repeated":
        repeated.take_turns(case, words.folder, turns, micro_batch=words.micro_batch)
    elif words.side == "matmul":
        floor.take_turns(case, words.folder, turns)
    elif words.side == "steps":
        steps.take_turns(case, words.folder, turns)
    else:
        from benchmarks import trl_side  # an extra's; slow to import

        trl_side.take_turns(case, words.folder, turns, micro_batch=words.micro_batch)


if __name__ == "__main__":
    main()
