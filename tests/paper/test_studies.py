"""The study files in paper/studies."""

import re
from pathlib import Path

from copd.config.study import load_study

STUDIES = Path(__file__).parents[2] / "paper" / "studies"


def test_every_mark_names_a_tuned_method():
    tuned = {m.rsplit("_", 1)[0] for m in load_study(STUDIES / "tuning_agree.toml").methods}
    marks = [
        mark
        for path in STUDIES.glob("*.toml")
        for mark in re.findall(r"# tuned: (\w+)/(\w+)$", path.read_text(), re.MULTILINE)
    ]
    assert len(marks) > 50
    assert {world for world, _ in marks} == {"agree", "conflict", "scarce"}
    assert {method for _, method in marks} <= tuned
