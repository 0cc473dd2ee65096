"""Packed passes against a plain transformers model that repeats prompts and pads rows."""

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText

from copd.functional.logprobs import token_logprobs
from copd.policy import Policy, Prompt
from copd.policy.loading import load_model
from tests.packing import flat

EQUAL = [[5, 5, 5], [5, 5, 5], [5, 5, 5], [5, 5, 5]]
RAGGED = [[1, 9, 4], [6], [2, 3, 12, 1], [7, 1]]
ONE_TOKEN = [[1, 1], [1], [1, 1, 1], [1]]
LONG = [[200, 3], [129], [1, 300], [128, 5]]


@pytest.fixture(scope="module")
def plain_seeing(seeing_folder: Path):
    return AutoModelForImageTextToText.from_pretrained(seeing_folder).eval()


@pytest.fixture(scope="module")
def plain_reading(reading_folders: dict[str, Path]):
    return {
        kind: AutoModelForCausalLM.from_pretrained(folder).eval()
        for kind, folder in reading_folders.items()
    }


def padded_logprobs(
    model, banned: Tensor, prompts: Sequence[Prompt], completions, side: str
) -> Tensor:
    """Score one padded row per completion, with prompts repeated and transformers' positions."""
    rows = [(p, ids) for p, group in zip(prompts, completions, strict=True) for ids in group]
    width = max(len(p.input_ids) + len(ids) for p, ids in rows)
    input_ids = torch.zeros(len(rows), width, dtype=torch.int64)
    mask, kinds = torch.zeros_like(input_ids), torch.zeros_like(input_ids)
    starts = []
    for row, (prompt, ids) in enumerate(rows):
        tokens = torch.cat([prompt.input_ids, torch.from_numpy(ids)])
        start = width - len(tokens) if side == "left" else 0
        here = slice(start, start + len(tokens))
        input_ids[row, here], mask[row, here] = tokens, 1
        if prompt.media:
            kinds[row, start : start + len(prompt.input_ids)] = prompt.media["mm_token_type_ids"]
        starts.append(start + len(prompt.input_ids))
    media = {
        name: torch.cat([p.media[name] for p, _ in rows if name in p.media])
        for name in ("pixel_values", "image_grid_thw", "pixel_values_videos", "video_grid_thw")
        if any(name in p.media for p in prompts)
    }
    if media:
        media["mm_token_type_ids"] = kinds
    inputs = {"input_ids": input_ids, "attention_mask": mask, **media}
    inputs = {name: tensor.to(model.device) for name, tensor in inputs.items()}
    logits = model(**inputs).logits
    logprobs = logits.masked_fill(banned, -torch.inf).log_softmax(-1)
    return torch.cat(
        [
            logprobs[row, start - 1 : start - 1 + len(ids)].gather(
                1, torch.from_numpy(ids).long().to(model.device)[:, None]
            )[:, 0]
            for row, (start, (_, ids)) in enumerate(zip(starts, rows, strict=True))
        ]
    )


def packed_logprobs(policy: Policy, prompts: Sequence[Prompt], completions) -> Tensor:
    states = policy.score(prompts, *flat(completions))
    return token_logprobs(states.hidden, policy.head, states.token_ids, banned=policy.banned)[0]


def gradients(model, logprobs: Tensor) -> dict[str, Tensor]:
    """Return the gradients of a sum in which every token has a weight of its own."""
    weights = torch.linspace(-1.0, 2.0, len(logprobs), device=logprobs.device)
    model.zero_grad()
    (weights * logprobs).sum().backward()
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def assert_same_gradients(packed: dict[str, Tensor], plain: dict[str, Tensor]) -> None:
    assert packed.keys() == plain.keys()
    total = torch.stack([grad.norm() for grad in plain.values()]).norm()
    errors = {name: (packed[name] - grad).norm() for name, grad in plain.items()}
    assert torch.stack(list(errors.values())).norm() <= 1e-4 * total
    # some gradients are zero up to rounding (a shift of all keys), hence the floor
    worst = {name: errors[name] / (plain[name].norm() + 1e-3 * total) for name in errors}
    name = max(worst, key=lambda key: float(worst[key]))
    assert worst[name] <= 1e-4, f"{name} is off by {worst[name]:.2g}"


@pytest.mark.parametrize("lengths", [EQUAL, RAGGED, ONE_TOKEN], ids=["equal", "ragged", "one"])
@pytest.mark.parametrize("kind", ["text", "image", "video", "mixed"])
def test_packed_equals_padded(seeing, plain_seeing, prompts_of, invent, kind, lengths):
    prompts = prompts_of(seeing, kind)
    completions = invent(seeing, lengths[: len(prompts)])
    packed = packed_logprobs(seeing, prompts, completions)
    plain = padded_logprobs(plain_seeing, seeing.banned, prompts, completions, "right")
    torch.testing.assert_close(packed, plain, atol=1e-5, rtol=0)
    grads = gradients(seeing.model, packed)
    assert_same_gradients(grads, gradients(plain_seeing, plain))
    sees = any(".visual." in name and grad.norm() > 0 for name, grad in grads.items())
    assert sees == (kind != "text")


@pytest.mark.gpu
@pytest.mark.parametrize("lengths", [EQUAL, RAGGED, LONG, ONE_TOKEN], ids=str)
@pytest.mark.parametrize("kind", ["text", "image", "video", "mixed"])
def test_a_gpu_agrees_with_its_padded_pass_and_the_cpu(
    seeing, seeing_folder, prompts_of, invent, exact_gpu, kind, lengths
):
    policy = Policy.load(seeing_folder, device="cuda")
    settings = {"dtype": "float32", "device": "cuda", "trust_remote_code": False}
    plain_model = load_model(str(seeing_folder), **settings).eval()
    prompts = prompts_of(policy, kind)
    completions = invent(seeing, lengths[: len(prompts)])
    packed = packed_logprobs(policy, prompts, completions)
    plain = padded_logprobs(plain_model, policy.banned, prompts, completions, "right")
    on_cpu = packed_logprobs(seeing, prompts, completions)
    torch.testing.assert_close(packed, plain, atol=5e-5, rtol=0)
    torch.testing.assert_close(packed.cpu(), on_cpu, atol=5e-5, rtol=0)
    grads = gradients(policy.model, packed)
    assert_same_gradients(grads, gradients(plain_model, plain))
    at_home = {name: grad.cpu() for name, grad in grads.items()}
    assert_same_gradients(at_home, gradients(seeing.model, on_cpu))


@pytest.mark.gpu
def test_a_gpu_works_under_autocast(seeing_folder, seeing, prompts_of, invent):
    policy = Policy.load(seeing_folder, device="cuda")
    prompts, completions = prompts_of(policy, "mixed"), invent(seeing, RAGGED)
    with torch.autocast("cuda", dtype=torch.bfloat16):
        logprobs = packed_logprobs(policy, prompts, completions)
    logprobs.sum().backward()
    exact = packed_logprobs(seeing, prompts, completions)
    torch.testing.assert_close(logprobs.float().cpu(), exact, atol=0.5, rtol=0)
    assert all(p.grad.isfinite().all() for p in policy.model.parameters() if p.grad is not None)


@pytest.mark.gpu
def test_a_gpu_never_waits_in_the_pass_over_completions(
    seeing_folder, seeing, prompts_of, invent, no_waiting
):
    policy = Policy.load(seeing_folder, device="cuda")
    completions = invent(seeing, RAGGED)
    with torch.no_grad():
        prefix = policy.read(prompts_of(policy, "mixed"))
        policy.score(prefix, *flat(completions))  # compiles
        with no_waiting():
            policy.score(prefix, *flat(completions))


@pytest.mark.parametrize("kind", ["text", "mixed"])
def test_packed_equals_left_padded(seeing, plain_seeing, prompts_of, invent, kind):
    prompts = prompts_of(seeing, kind)
    completions = invent(seeing, RAGGED[: len(prompts)])
    with torch.no_grad():
        packed = packed_logprobs(seeing, prompts, completions)
        plain = padded_logprobs(plain_seeing, seeing.banned, prompts, completions, "left")
    torch.testing.assert_close(packed, plain, atol=1e-5, rtol=0)


def test_the_model_of_a_policy_still_reads_padded_batches(seeing, plain_seeing, prompts_of, invent):
    prompts = prompts_of(seeing, "mixed")
    completions = invent(seeing, RAGGED)
    with torch.no_grad():
        ours, plain = (
            padded_logprobs(model, seeing.banned, prompts, completions, "left")
            for model in (seeing.model, plain_seeing)
        )
    assert torch.equal(ours, plain)


@pytest.mark.parametrize("model", ["llama", "qwen3"])
def test_packed_equals_padded_for_text_models(reading, plain_reading, prompts_of, invent, model):
    policy, plain_model = reading[model], plain_reading[model]
    prompts = prompts_of(policy, "text")
    completions = invent(policy, RAGGED[:3])
    packed = packed_logprobs(policy, prompts, completions)
    plain = padded_logprobs(plain_model, policy.banned, prompts, completions, "right")
    torch.testing.assert_close(packed, plain, atol=1e-5, rtol=0)
    assert_same_gradients(gradients(policy.model, packed), gradients(plain_model, plain))


def test_equal_prompts_need_no_padding(seeing, plain_seeing, prompts_of, invent):
    prompt = prompts_of(seeing, "image")[0]
    completions = invent(seeing, [[4, 2], [3, 3]])
    with torch.no_grad():
        packed = packed_logprobs(seeing, [prompt, prompt], completions)
        plain = padded_logprobs(plain_seeing, seeing.banned, [prompt, prompt], completions, "right")
    torch.testing.assert_close(packed, plain, atol=1e-5, rtol=0)


def test_states_come_prompt_by_prompt_and_completion_by_completion(seeing, prompts_of, invent):
    prompts = prompts_of(seeing, "mixed")
    completions = invent(seeing, RAGGED)
    with torch.no_grad():
        together = seeing.score(prompts, *flat(completions))
        alone = [
            seeing.score([prompt], *flat([[ids]]))
            for prompt, group in zip(prompts, completions, strict=True)
            for ids in group
        ]
    assert together.lengths.tolist() == [length for group in RAGGED for length in group]
    assert together.token_ids.tolist() == [
        int(token) for group in completions for ids in group for token in ids
    ]
    hidden = torch.cat([states.hidden for states in alone])
    torch.testing.assert_close(together.hidden, hidden, atol=2e-5, rtol=0)


def test_a_prompt_without_completions_changes_nothing(seeing, prompts_of, invent):
    prompts = prompts_of(seeing, "mixed")
    first, *_, last = invent(seeing, RAGGED)
    with torch.no_grad():
        some = seeing.score(prompts, *flat([first, [], [], last]))
        only = seeing.score([prompts[0], prompts[3]], *flat([first, last]))
    torch.testing.assert_close(some.hidden, only.hidden, atol=2e-5, rtol=0)


def test_no_graph_without_gradients(seeing, prompts_of, invent):
    with torch.no_grad():
        states = seeing.score(prompts_of(seeing, "text"), *flat(invent(seeing, RAGGED[:3])))
    assert not states.hidden.requires_grad


def test_prompt_and_pixels_are_run_once(seeing, prompts_of, invent):
    prompts = prompts_of(seeing, "mixed")
    body = seeing.model.model
    tokens, pixels = [], []
    hooks = [
        body.language_model.layers[0].register_forward_pre_hook(
            lambda module, args: tokens.append(args[0].shape[:2].numel())
        ),
        body.visual.register_forward_pre_hook(lambda module, args: pixels.append(len(args[0]))),
    ]
    try:
        seeing.score(prompts, *flat(invent(seeing, RAGGED)))
    finally:
        for hook in hooks:
            hook.remove()
    all_but_last = sum(length - 1 for group in RAGGED for length in group)
    assert tokens == [sum(len(prompt.input_ids) for prompt in prompts), all_but_last]
    rows = {
        name: sum(len(p.media[name]) for p in prompts if name in p.media)
        for name in ("pixel_values", "pixel_values_videos")
    }
    assert pixels == [sum(rows.values())]


def test_works_under_autocast(seeing_folder, prompts_of, invent):
    policy = Policy.load(seeing_folder)
    prompts = prompts_of(policy, "mixed")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logprobs = packed_logprobs(policy, prompts, invent(policy, RAGGED))
        logprobs.sum().backward()
    exact = packed_logprobs(policy, prompts, invent(policy, RAGGED))
    torch.testing.assert_close(logprobs.float(), exact, atol=0.5, rtol=0)
    assert all(p.grad.isfinite().all() for p in policy.model.parameters() if p.grad is not None)


def test_another_attention_implementation_is_noticed(seeing_folder, prompts_of, invent):
    policy = Policy.load(seeing_folder)
    policy.model.set_attn_implementation("sdpa")
    with pytest.raises(ValueError, match="leave its attention implementation as Policy set it"):
        policy.score(prompts_of(policy, "text"), *flat(invent(policy, RAGGED[:3])))


def test_training_mode_is_refused(seeing_folder, prompts_of, invent):
    policy = Policy.load(seeing_folder)
    policy.model.train()
    with pytest.raises(ValueError, match=r"Call model.eval\(\)"):
        policy.score(prompts_of(policy, "text"), *flat(invent(policy, RAGGED[:3])))


@pytest.mark.filterwarnings("ignore:.*gradient_checkpointing_enable:FutureWarning")
def test_checkpointing_leaves_the_gradient_right(seeing_folder, prompts_of, invent):
    policy = Policy.load(seeing_folder)
    prompts, completions = prompts_of(policy, "image"), invent(policy, RAGGED[:3])
    expected = gradients(policy.model, packed_logprobs(policy, prompts, completions))
    expected = {name: grad.clone() for name, grad in expected.items()}
    policy.model.gradient_checkpointing_enable({"use_reentrant": True})
    found = gradients(policy.model, packed_logprobs(policy, prompts, completions))
    assert_same_gradients(found, expected)


def test_score_refuses_what_does_not_match(seeing, prompts_of, invent):
    prompts = prompts_of(seeing, "text")
    with pytest.raises(ValueError, match="Pass one group per prompt"):
        seeing.score(prompts, *flat(invent(seeing, [[3]])))
    with pytest.raises(ValueError, match="Leave out prompts and completions without tokens"):
        seeing.score(prompts, *flat(invent(seeing, [[3], [0], [1]])))
    with pytest.raises(ValueError, match="at least one completion"):
        seeing.score(prompts, *flat([[], [], []]))
