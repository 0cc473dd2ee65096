"""The values passed to vLLM and read from it, in the shapes of its sources.

vLLM itself does not run here, so these tests cannot show that it accepts them.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from copd.config import RolloutConfig
from copd.policy import Policy, Prompt, SamplingRequest
from copd.policy.rendering.pixels import MEDIA_FIELDS
from copd.policy.sampling.vllm import (
    VllmEngine,
    VllmSampler,
    require_room,
    require_vllm,
    save_settings,
)
from copd.policy.sampling.vllm_format import (
    SampledLogprobs,
    locate_media,
    sampling_settings,
    seed_at,
    to_samples,
)

VISION_START, VISION_END, IMAGE, VIDEO = 90, 91, 92, 93


@dataclass
class Flat:
    """Like `vllm.logprobs.FlatLogprobs`: all positions end to end."""

    start_indices: list[int]
    token_ids: list[int]
    logprobs: list[float]


@dataclass
class Output:
    """Like `vllm.CompletionOutput`."""

    token_ids: Sequence[int]
    logprobs: SampledLogprobs | None
    finish_reason: str | None = "stop"
    text: str = field(default="", init=False)


def flat_logprobs(token_ids: list[int], logprobs: list[float]) -> Flat:
    return Flat([*range(len(token_ids))], token_ids, logprobs)


def settings(request: SamplingRequest, index: int = 0) -> dict:
    return sampling_settings(request, index, max_tokens=9, banned=[4, 11], ends=frozenset({7, 2}))


def test_the_settings_of_a_group():
    request = SamplingRequest([], group_size=8, temperature=0.7, seed=5)
    assert settings(request, 3) == {
        "n": 8,
        "temperature": 0.7,
        "seed": seed_at(5, 3),
        "max_tokens": 9,
        "ignore_eos": True,
        "stop_token_ids": [2, 7],
        "logit_bias": {4: -math.inf, 11: -math.inf},
        "logprobs": 0,
        "flat_logprobs": True,
        "detokenize": False,
    }


def test_one_greedy_completion_stands_for_its_group():
    assert settings(SamplingRequest([], group_size=8, temperature=0.0, seed=5))["n"] == 1


def test_seeds_follow_a_prompts_place_in_the_whole_batch():
    whole = SamplingRequest([], 4, 1.0, seed=5)
    part = SamplingRequest([], 4, 1.0, seed=5, first_prompt=2, num_prompts=6)
    assert settings(part, 1)["seed"] == settings(whole, 3)["seed"]
    places = [seed_at(seed, place) for seed in range(30) for place in range(30)]
    assert len(set(places)) == 900
    # a group of G uses seed, seed + 1, ...: groups must not overlap, and vLLM has 63 bits
    apart = np.diff(np.sort(np.array(places, dtype=np.int64)))
    assert apart.min() > 16_384 and max(places) + 16_384 < 2**63


def test_rows_are_packed_and_keep_their_end_tokens():
    rows = [
        Output([5, 6, 2], flat_logprobs([5, 6, 2], [-0.5, -1.5, -0.25])),
        Output([9], flat_logprobs([9], [-3.0]), finish_reason="length"),
    ]
    samples = to_samples(rows)
    assert samples.token_ids.tolist() == [5, 6, 2, 9]
    assert samples.logprobs.tolist() == [-0.5, -1.5, -0.25, -3.0]
    assert samples.lengths.tolist() == [3, 1]
    assert samples.token_ids.dtype == np.int32 and samples.logprobs.dtype == np.float32


def test_of_several_tokens_at_a_position_the_first_was_sampled():
    # two positions, each the sampled token and then the most probable one
    flat = Flat([0, 2], [5, 8, 6, 6], [-2.0, -0.1, -0.3, -0.3])
    samples = to_samples([Output([5, 6], flat)])
    assert samples.logprobs == pytest.approx([-2.0, -0.3])


@pytest.mark.parametrize(
    "row",
    [
        Output([5, 6], flat_logprobs([5, 6], [-1.0, -1.0]), finish_reason="abort"),
        Output([5, 6], flat_logprobs([5, 6], [-1.0, -1.0]), finish_reason=None),
        Output([5, 6], flat_logprobs([5, 7], [-1.0, -1.0])),
        Output([5, 6], flat_logprobs([5], [-1.0])),
        Output([5, 6], None),
    ],
)
def test_incomplete_outputs_are_refused(row):
    with pytest.raises(RuntimeError, match="finish every completion and return each token's"):
        to_samples([Output([1], flat_logprobs([1], [-1.0])), row])


@pytest.mark.parametrize("value", [math.nan, -math.inf])
def test_log_probabilities_that_are_not_finite_are_divergence(value):
    with pytest.raises(FloatingPointError, match="Go back to weights"):
        to_samples([Output([5, 6], flat_logprobs([5, 6], [-1.0, value]))])


def frames(t: int, h: int, w: int, times: list[int]) -> list[int]:
    """Return a video's tokens in Qwen3-VL: each temporal patch after its time, between marks."""
    visual = [VIDEO] * (h * w // 4)
    return [i for n in range(t) for i in (times[n], VISION_START, *visual, VISION_END)]


@pytest.fixture
def mixed() -> Prompt:
    """A video of two temporal patches, an image, a video of one, another image."""
    ids = [1, *frames(2, 2, 4, [30, 31]), 2, VISION_START, *[IMAGE] * 3, VISION_END]
    ids += [*frames(1, 4, 2, [30]), VISION_START, IMAGE, VISION_END, 3]
    media = {
        "pixel_values": torch.arange(16 * 5.0).reshape(16, 5),
        "image_grid_thw": torch.tensor([[1, 2, 6], [1, 2, 2]]),
        "pixel_values_videos": torch.arange(24 * 5.0).reshape(24, 5),
        "video_grid_thw": torch.tensor([[2, 2, 4], [1, 4, 2]]),
    }
    return Prompt(torch.tensor(ids), media)


def test_images_are_where_their_tokens_are(mixed):
    placed = locate_media(mixed, "image", token=IMAGE, merge_size=2)
    assert [(one.offset, one.length, one.is_visual) for one in placed] == [
        (13, 3, None),
        (23, 1, None),
    ]


def test_a_video_reaches_from_its_first_mark_to_its_last(mixed):
    first, second = locate_media(mixed, "video", token=VIDEO, merge_size=2)
    # mark, 2 tokens, mark, time, mark, 2 tokens, mark
    assert (first.offset, first.length) == (2, 9)
    assert first.is_visual is not None and second.is_visual is not None
    assert first.is_visual.int().tolist() == [0, 1, 1, 0, 0, 0, 1, 1, 0]
    assert (second.offset, second.is_visual.int().tolist()) == (18, [0, 1, 1, 0])
    ids = mixed.input_ids.tolist()
    assert ids.index(VISION_START, second.offset) == second.offset  # as vLLM looks for frames


def test_videos_of_qwen25_are_refused(seeing_25_folder, prompts_of):
    policy = Policy.load(seeing_25_folder)
    sampler = VllmSampler(policy, VllmEngine(RolloutConfig(), "float32"))
    with pytest.raises(ValueError, match=r"follows a video of Qwen2.5-VL.*Use a Qwen3-VL"):
        sampler._input(prompts_of(policy, "video")[0])


def test_equal_pixels_have_equal_identities(mixed):
    options = {"token": IMAGE, "merge_size": 2}
    names = [one.identity for one in locate_media(mixed, "image", **options)]
    assert len(set(names)) == 2
    again = Prompt(mixed.input_ids, {k: v.clone() for k, v in mixed.media.items()})
    assert [one.identity for one in locate_media(again, "image", **options)] == names
    again.media["pixel_values"][0, 0] += 1
    changed = [one.identity for one in locate_media(again, "image", **options)]
    assert changed[0] != names[0] and changed[1] == names[1]


@pytest.mark.parametrize("kind", ["image", "video", "mixed"])
def test_every_visual_token_of_a_real_prompt_belongs_to_one_place(seeing, prompts_of, kind):
    vision = seeing.backbone.vision
    for prompt in prompts_of(seeing, kind):
        covered = torch.zeros(len(prompt.input_ids), dtype=torch.int64)
        for name, token in zip(MEDIA_FIELDS, (vision.image_token, vision.video_token), strict=True):
            for one in locate_media(prompt, name, token=token, merge_size=2):
                visual = torch.ones(one.length) if one.is_visual is None else one.is_visual
                covered[one.offset : one.offset + one.length] += visual.long()
        assert torch.equal(covered, vision.is_visual(prompt.input_ids).long())


@pytest.mark.skipif(find_spec("vllm") is not None, reason="needs a place without vLLM")
def test_a_missing_vllm_is_reported():
    with pytest.raises(ValueError, match=r"pip install 'copd\[vllm\]'.*internal"):
        require_vllm(torch.device("cuda"))


def test_rows_that_would_be_cut_off_are_refused():
    requests = [({"prompt_token_ids": [1] * length}, {"max_tokens": 9}) for length in (3, 5)]
    require_room(requests, 14)
    with pytest.raises(ValueError, match=r"for 13 tokens a row: got a prompt of 5 and.*up to 9"):
        require_room(requests, 13)


def test_more_banned_tokens_than_vllm_has_room_for_are_refused(seeing_folder):
    policy = Policy.load(seeing_folder)
    engine = VllmEngine(RolloutConfig(), "float32")
    VllmSampler(policy, engine)
    policy._banned = torch.ones(1025, dtype=torch.bool)
    with pytest.raises(ValueError, match=r"can ban 1024 tokens: got 1025.*internal"):
        VllmSampler(policy, engine)


def test_settings_without_weights_are_a_folder_that_describes_the_model(seeing, tmp_path):
    save_settings(seeing, tmp_path)
    names = {file.name for file in tmp_path.iterdir()}
    assert {"config.json", "generation_config.json", "tokenizer.json"} <= names
    assert "processor_config.json" in names and not list(tmp_path.glob("*.safetensors"))
    assert '"Qwen3VLForConditionalGeneration"' in (tmp_path / "config.json").read_text()


@pytest.mark.parametrize("kind", ["seeing", "llama", "qwen3"])
def test_weights_have_the_names_they_have_in_a_folder(seeing_folder, reading_folders, kind):
    folder = seeing_folder if kind == "seeing" else reading_folders[kind]
    state = Policy.load(folder).state_dict()
    saved = load_file(folder / "model.safetensors")
    assert state.keys() - saved.keys() == ({"lm_head.weight"} if kind == "qwen3" else set())
    assert all(torch.equal(state[name], tensor) for name, tensor in saved.items())
