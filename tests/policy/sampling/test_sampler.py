"""Sampling: equal to scoring, independent of the batch, and never a banned token."""

import numpy as np
import pytest
import torch

from copd.functional.logprobs import token_logprobs
from copd.policy import Policy
from copd.policy.sampling.sampler import Draw, Pace, draw_tokens, sample_tokens
from tests.packing import flat

KINDS = ["text", "image", "video", "mixed"]


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def sample_early_ends(
    policy: Policy, prompts, *, seed: int = 0, max_tokens=40, pace=None, **settings
):
    """Sample with many end tokens, a tenth of the vocabulary, so that lengths differ widely."""
    draw = early_ends_draw(policy, prompts, seed=seed, **settings)
    return sample_draws(policy, [draw], max_tokens=max_tokens, pace=pace)[0]


def early_ends_draw(policy: Policy, prompts, *, seed: int, group_size=5, temperature=1.0) -> Draw:
    with torch.no_grad():
        return Draw(policy.read(prompts), group_size, temperature, seeded(seed))


def sample_draws(policy: Policy, draws, *, max_tokens=40, pace=None):
    return sample_tokens(
        policy.backbone,
        draws,
        max_tokens=max_tokens,
        banned=policy.banned,
        ends=frozenset(range(10, 20)),
        pace=pace,
    )


def assert_scored_alike(
    policy: Policy, prompts, samples, temperature: float, *, atol: float = 1e-5
) -> None:
    with torch.no_grad():
        states = policy.score(prompts, samples.token_ids, samples.lengths)
        scored, _ = token_logprobs(
            states.hidden,
            policy.head,
            states.token_ids,
            banned=policy.banned,
            temperature=temperature,
        )
    np.testing.assert_allclose(samples.logprobs, scored.numpy(force=True), atol=atol, rtol=0)


@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("kind", KINDS)
def test_sampled_logprobs_equal_scored_ones(seeing, prompts_of, kind, temperature):
    prompts = prompts_of(seeing, kind)
    samples = sample_early_ends(seeing, prompts, temperature=temperature)
    assert len(set(samples.lengths.tolist())) > 3
    assert_scored_alike(seeing, prompts, samples, temperature)


@pytest.mark.parametrize("model", ["llama", "qwen3"])
def test_sampled_logprobs_equal_scored_ones_for_text_models(reading, prompts_of, model):
    prompts = prompts_of(reading[model], "text")
    samples = sample_early_ends(reading[model], prompts)
    assert_scored_alike(reading[model], prompts, samples, 1.0)


@pytest.mark.gpu
@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("kind", KINDS)
def test_a_gpu_samples_what_it_scores(seeing_folder, prompts_of, exact_gpu, kind, temperature):
    policy = Policy.load(seeing_folder, device="cuda")
    prompts = prompts_of(policy, kind)
    with torch.no_grad():
        generator = torch.Generator("cuda").manual_seed(0)
        draw = Draw(policy.read(prompts), 12, temperature, generator)
    samples = sample_draws(policy, [draw], max_tokens=60)[0]
    assert len(set(samples.lengths.tolist())) > 3
    assert_scored_alike(policy, prompts, samples, temperature, atol=5e-5)


def test_long_completions_outgrow_the_first_buffer(seeing, prompts_of):
    prompts = prompts_of(seeing, "image")
    draw = early_ends_draw(seeing, prompts, seed=0, group_size=2)
    [samples] = sample_tokens(
        seeing.backbone,
        [draw],
        max_tokens=70,
        banned=seeing.banned,
        ends=frozenset(range(10, 12)),
    )
    assert samples.lengths.max() == 70
    assert_scored_alike(seeing, prompts, samples, 1.0)


PACES = {
    "by four fifths": Pace(look_every=1, drop_below=0.8, is_static=False),
    "at once": Pace(look_every=1, drop_below=1.0, is_static=False),
    "seldom": Pace(look_every=7, drop_below=1.0, is_static=False),
    "static": Pace(look_every=5, drop_below=0.5, is_static=True),
    "row by row": Pace(look_every=1, drop_below=0.8, is_static=False, most_scores=1),
}


@pytest.mark.parametrize("pace", PACES)
@pytest.mark.parametrize("kind", KINDS)
def test_the_pace_changes_no_token(seeing, prompts_of, kind, pace):
    prompts = prompts_of(seeing, kind)
    expected = sample_early_ends(seeing, prompts, pace=Pace(1, 0.0, False))
    paced = sample_early_ends(seeing, prompts, pace=PACES[pace])
    assert expected.lengths.tolist() == paced.lengths.tolist()
    assert expected.token_ids.tolist() == paced.token_ids.tolist()
    np.testing.assert_allclose(expected.logprobs, paced.logprobs, atol=1e-5, rtol=0)


def test_finished_rows_leave_the_batch(seeing, prompts_of):
    prompts = prompts_of(seeing, "mixed")
    widths: list[int] = []
    hook = seeing.model.model.language_model.layers[0].register_forward_pre_hook(
        lambda module, args: widths.append(args[0].shape[1])
    )
    try:
        samples = sample_early_ends(seeing, prompts, pace=PACES["at once"])
    finally:
        hook.remove()
    still_live = [int((samples.lengths > step).sum()) for step in range(1, samples.lengths.max())]
    assert widths == [sum(len(p.input_ids) for p in prompts), *still_live]


def test_batches_written_together_have_the_tokens_of_each_alone(seeing, prompts_of):
    """Other prompts, lengths, temperatures and group sizes in the loop have no influence."""

    def draws():
        settings = {"text": (3, 1.0), "video": (2, 0.7), "mixed": (4, 1.3)}
        return [
            early_ends_draw(
                seeing, prompts_of(seeing, kind), seed=i, group_size=group, temperature=temperature
            )
            for i, (kind, (group, temperature)) in enumerate(settings.items())
        ]

    together = sample_draws(seeing, draws())
    alone = [sample_draws(seeing, [draw])[0] for draw in draws()]
    for found, expected in zip(together, alone, strict=True):
        assert found.lengths.tolist() == expected.lengths.tolist()
        assert found.token_ids.tolist() == expected.token_ids.tolist()
        np.testing.assert_allclose(found.logprobs, expected.logprobs, atol=1e-5, rtol=0)


def test_a_group_is_prefilled_once(seeing, prompts_of):
    prompts = prompts_of(seeing, "image")
    pixels: list[int] = []
    hook = seeing.model.model.visual.register_forward_pre_hook(
        lambda module, args: pixels.append(len(args[0]))
    )
    try:
        sample_early_ends(seeing, prompts, group_size=8, max_tokens=4)
    finally:
        hook.remove()
    assert pixels == [sum(len(prompt.media["pixel_values"]) for prompt in prompts)]


def test_randomness_comes_from_the_generator_alone(seeing, prompts_of):
    prompts = prompts_of(seeing, "mixed")
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first = sample_early_ends(seeing, prompts)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    again = sample_early_ends(seeing, prompts)
    other = sample_early_ends(seeing, prompts, seed=1)
    assert first.token_ids.tolist() == again.token_ids.tolist()
    assert first.token_ids.tolist() != other.token_ids.tolist()


def test_a_placeholder_is_never_sampled_however_likely(seeing_folder, prompts_of):
    policy = Policy.load(seeing_folder)
    prompts = prompts_of(policy, "mixed")
    placeholder = policy.model.config.image_token_id
    with torch.no_grad():
        first = policy.score(prompts, *flat([[np.array([5], dtype=np.int32)]] * 4)).hidden
        policy.head[placeholder] = 20 * first.mean(0) / first.mean(0).norm()
    found = policy.sample(prompts, group_size=8, max_tokens=12, temperature=1.0, generator=seeded())
    groups = [[completion.token_ids for completion in group] for group in found]
    with torch.no_grad():
        states = policy.score(prompts, *flat(groups))
        likeliest = (states.hidden @ policy.head.T).argmax(-1)
    assert (likeliest == placeholder).float().mean() > 0.2  # it would have been sampled
    sampled = torch.from_numpy(np.concatenate([ids for group in groups for ids in group])).long()
    assert not policy.banned[sampled].any()


def test_completions_have_their_end_and_text(seeing, prompts_of):
    (end,) = seeing.end_tokens
    prompts = prompts_of(seeing, "text")
    groups = seeing.sample(
        prompts, group_size=20, max_tokens=60, temperature=1.5, generator=seeded()
    )
    assert [len(group) for group in groups] == [20, 20, 20]
    completions = [completion for group in groups for completion in group]
    assert {completion.is_truncated for completion in completions} == {True, False}
    for completion in completions:
        assert completion.token_ids.dtype == np.int32
        assert completion.logprobs.dtype == np.float32
        assert len(completion.logprobs) == len(completion.token_ids) <= 60
        assert end not in completion.token_ids[:-1]
        assert completion.is_truncated == (completion.token_ids[-1] != end)
        assert completion.is_truncated <= (len(completion.token_ids) == 60)
        answer = completion.token_ids if completion.is_truncated else completion.token_ids[:-1]
        tokens = seeing.tokenizer.convert_ids_to_tokens(answer.tolist())
        assert completion.text == "".join(tokens)


def test_no_prompts_give_no_groups(seeing):
    assert seeing.sample([], group_size=2, max_tokens=3, temperature=1.0, generator=seeded()) == []


@pytest.mark.parametrize(
    "wrong", [{"group_size": 0}, {"max_tokens": 0}, {"temperature": -1.0}], ids=str
)
def test_impossible_settings_are_refused(seeing, prompts_of, wrong):
    settings = {"group_size": 1, "max_tokens": 1, "temperature": 1.0} | wrong
    with pytest.raises(ValueError, match="Correct the settings"):
        seeing.sample(prompts_of(seeing, "text"), **settings, generator=seeded())


def test_diverged_weights_are_noticed(seeing_folder, prompts_of):
    policy = Policy.load(seeing_folder)
    with torch.no_grad():
        policy.model.model.language_model.norm.weight[0] = torch.nan
    for temperature in (0.0, 1.0):
        with pytest.raises(FloatingPointError, match="Go back to weights from before"):
            policy.sample(
                prompts_of(policy, "text"),
                group_size=1,
                max_tokens=1,
                temperature=temperature,
                generator=seeded(),
            )


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_divergence_is_noticed_at_the_next_look(seeing_folder, prompts_of, temperature):
    policy = Policy.load(seeing_folder)
    prompts = prompts_of(policy, "text")
    with torch.no_grad():
        draw = Draw(policy.read(prompts), 2, temperature, seeded())
        policy.model.model.language_model.norm.weight[0] = torch.nan
    with pytest.raises(FloatingPointError, match="Go back to weights from before"):
        sample_draws(policy, [draw], pace=PACES["static"])


@pytest.mark.parametrize("pace", ["by four fifths", "static"])
def test_works_under_autocast(seeing, prompts_of, pace):
    with torch.autocast("cpu", dtype=torch.bfloat16):
        samples = sample_early_ends(seeing, prompts_of(seeing, "mixed"), pace=PACES[pace])
    assert np.isfinite(samples.logprobs).all()


def test_draw_inverts_the_cumulative_distribution():
    probabilities = torch.tensor([0.0, 0.25, 0.0, 0.5, 0.25, 0.0])
    noise = torch.tensor([0.0, 0.2499, 0.2501, 0.7499, 0.7501, 1 - 2**-53], dtype=torch.float64)
    tokens = draw_tokens(probabilities.log().expand(6, -1), noise)
    assert tokens.tolist() == [1, 1, 3, 3, 4, 4]


def test_draw_frequencies():
    probabilities = torch.tensor([0.1, 0.2, 0.7])
    noise = torch.rand(20_000, generator=seeded(), dtype=torch.float64)
    tokens = draw_tokens(probabilities.log().expand(20_000, -1), noise)
    frequencies = tokens.bincount(minlength=3) / 20_000
    torch.testing.assert_close(frequencies, probabilities, atol=0.01, rtol=0)
