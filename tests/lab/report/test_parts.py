"""The parts of the page: chosen rollouts, matrices, pictures, tokens, thinned lines."""

import base64
import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoTokenizer, PreTrainedTokenizerFast, Qwen3Config

from copd.lab.report.curves import num_points, rounded, thinned
from copd.lab.report.matrices import matrices
from copd.lab.report.pictures import MAX_SIDE, Album
from copd.lab.report.reading import RunFiles
from copd.lab.report.rollouts import choose
from copd.policy.tiny import resolve
from copd.policy.tokens import token_reader

KEYS = st.lists(st.tuples(st.sampled_from("ab"), st.sampled_from(["rlvr/a", "opd/from_b/b"])))


def run_of(**parts: Any) -> RunFiles:
    """Return a run that has only some files."""
    names = ("metrics", "timings", "evaluations", "dynamics")
    rest = {"settings": {}, "config": None, "plan": {}, "results": {}, **{n: [] for n in names}}
    return RunFiles(path=Path("run"), name="run", method=None, **{**rest, **parts})


# Which rollouts are shown


@given(KEYS, st.integers(1, 20))
def test_every_branch_and_action_is_shown_with_its_last_group(keys, quota):
    chosen = choose(keys, quota)
    assert len(chosen) <= max(quota, len(set(keys)))
    assert {keys[i] for i in chosen} == set(keys)
    for key in set(keys):
        assert max(i for i, k in enumerate(keys) if k == key) in chosen


def test_groups_are_spread_over_the_run():
    assert choose([("a", "rlvr/a")] * 9, 3) == {0, 4, 8}
    assert choose([("a", "rlvr/a")] * 2, 300) == {0, 1}


# Matrices


def test_matrices_from_dynamics_keep_places_of_models_that_come_later():
    tables = {"overlap": [[1.0, 0.9], [0.8, 1.0]], "symmetric_kl": [[0.0, None], [0.2, 0.0]]}
    more = {"overlap": [[1.0]], "symmetric_kl": [[0.0]]}
    dynamics = [
        {"step": 2, "models": ["a", "b"], "domains": {"d": tables}, "stage": "mutual"},
        {"step": 4, "models": ["c"], "domains": {"d": more}},
    ]
    found = matrices(run_of(dynamics=dynamics))
    assert found["all_pairs"]
    assert found["models"] == ["a", "b", "c"]
    first, second = found["moments"]
    assert first["domains"]["d"]["overlap"] == [[1.0, 0.9, None], [0.8, 1.0, None], [None] * 3]
    assert first["domains"]["d"]["symmetric_kl"][0] == [0.0, None, None]
    assert (second["step"], second["stage"]) == (4, "")
    assert second["domains"]["d"]["overlap"] == [[None] * 3, [None] * 3, [None, None, 1.0]]


def test_matrices_from_metrics_have_the_student_in_the_row():
    taught = {"opd/from_b/d/overlap": 0.7, "opd/from_b/d/symmetric_kl": 0.3, "rlvr/c/reward": 1.0}
    metrics = [
        {"step": 1, "branches": {"a": {"rlvr/c/reward": 1.0}}},
        {"step": 2, "stage": "mutual", "branches": {"a": taught, "b": {}}},
    ]
    found = matrices(run_of(metrics=metrics, plan={"branches": ["a", "b"], "stages": []}))
    assert not found["all_pairs"]
    [moment] = found["moments"]
    assert moment == {
        "step": 2,
        "stage": "mutual",
        "domains": {
            "d": {"overlap": [[1.0, 0.7], [None, 1.0]], "symmetric_kl": [[0.0, 0.3], [None, 0.0]]}
        },
    }


# Lines


@given(st.integers(0, 400), st.integers(1, 60))
def test_thinned_lines_keep_both_ends(size, points):
    records: list[dict[str, Any]] = [{"step": i} for i in range(size)]
    chosen = thinned(records, points)
    assert len(chosen) <= points + 1
    assert chosen[:1] == records[:1]
    assert chosen[-1:] == records[-1:]
    assert [r["step"] for r in chosen] == sorted({r["step"] for r in chosen})


def test_many_runs_have_fewer_points():
    assert [num_points(n) for n in (0, 1, 20, 1000)] == [500, 500, 200, 50]


@pytest.mark.parametrize(
    ("value", "number"),
    [(0.123456789, 0.12346), (3, 3.0), (float("nan"), None), (float("inf"), None), ("x", None)],
)
def test_rounded(value, number):
    assert rounded(value) == number


# Pictures


def test_a_picture_is_stored_once_and_unchanged():
    rng = np.random.default_rng(0)
    colour = rng.integers(0, 256, (5, 7, 3), dtype=np.uint8)
    grey = np.repeat(rng.integers(0, 256, (6, 4, 1), dtype=np.uint8), 3, axis=2)
    album = Album()
    assert [album.place(p) for p in (colour, grey, colour.copy())] == [0, 1, 0]
    for uri, pixels in zip(album.uris, (colour, grey), strict=True):
        head, _, data = uri.partition(",")
        assert head == "data:image/png;base64"
        shown = Image.open(io.BytesIO(base64.b64decode(data))).convert("RGB")
        np.testing.assert_array_equal(np.asarray(shown), pixels)


def test_large_pictures_shrink_and_a_full_album_takes_no_more():
    pixels = np.random.default_rng(0).integers(0, 256, (2 * MAX_SIDE, 40, 3), dtype=np.uint8)
    album = Album(max_bytes=30_000)
    assert album.place(pixels) == 0
    png = base64.b64decode(album.uris[0].partition(",")[2])
    assert Image.open(io.BytesIO(png)).size == (20, MAX_SIDE)
    assert album.place(255 - pixels) is None
    assert album.place(pixels) == 0


# Tokens


def test_token_texts_of_the_embedded_base_join_to_its_text():
    tokenizer = AutoTokenizer.from_pretrained(resolve("tiny"))
    ids = [*tokenizer("Compute 8+6.\n#14").input_ids, tokenizer.eos_token_id]
    texts = token_reader(resolve("tiny"))(ids)
    assert len(texts) == len(ids)
    assert "".join(texts) == tokenizer.decode(ids)


def test_a_character_of_several_tokens_stands_at_its_last(tmp_path: Path):
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({c: i for i, c in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer).save_pretrained(tmp_path)
    Qwen3Config().save_pretrained(tmp_path)
    ids = tokenizer.encode("a\u00e9\u6f22 b").ids
    assert token_reader(str(tmp_path))(ids) == ["a", "", "\u00e9", "", "", "\u6f22", " ", "b"]
