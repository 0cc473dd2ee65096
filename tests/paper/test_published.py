"""paper/results.md is what `python -m paper` makes of paper/results, nothing older."""

import re
from pathlib import Path

import pytest

from paper.__main__ import main

PAPER = Path(__file__).parents[2] / "paper"
NUMBER = re.compile(r"\d+(?:\.\d+)?")


def test_the_published_page_is_made_from_the_collected_results(tmp_path):
    (tmp_path / "results").symlink_to(PAPER / "results")
    assert main(["--studies", str(tmp_path / "none"), "--folder", str(tmp_path)]) == 0
    made, published = ((root / "results.md").read_text() for root in (tmp_path, PAPER))
    assert NUMBER.sub("#", made) == NUMBER.sub("#", published)
    # on another processor sums may round to the next digit
    numbers = ([float(found) for found in NUMBER.findall(page)] for page in (made, published))
    assert next(numbers) == pytest.approx(next(numbers), abs=0.1001)
    drawn = {path.name for path in (tmp_path / "figures").iterdir()}
    assert drawn == {Path(link).name for link in re.findall(r"\]\((figures/.*?)\)", published)}
    assert drawn <= {path.name for path in (PAPER / "figures").iterdir()}
