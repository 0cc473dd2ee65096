"""Completions by vLLM, from a policy's own weights. Knows no training; imports vLLM when it starts.

Written against the sources of vLLM 0.33.0, and never run: it needs a GPU that nobody has tried it
on. What is translated to and from its values (vllm_format.py) is tested; what calls it is not.
"""

from __future__ import annotations

import atexit
from collections.abc import Mapping, Sequence
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from shutil import rmtree
from tempfile import mkdtemp
from typing import Any, Protocol, runtime_checkable

import torch
from transformers import BatchFeature

from copd.config import RolloutConfig
from copd.policy.policy import Policy
from copd.policy.rendering.render import Prompt
from copd.policy.sampling.protocol import SamplingRequest, SamplingResult
from copd.policy.sampling.vllm_format import (
    FIELDS,
    Kind,
    VllmOutput,
    place_media,
    sampling_settings,
    to_samples,
)

WRITTEN_FOR = "0.33"
"""Its interface to engines changes from one minor version to the next."""

MAX_BANNED = 1024
"""Tokens with a bias that vLLM's model runner has room for (`MAX_NUM_LOGIT_BIAS_TOKENS`)."""


@runtime_checkable
class Running(Protocol):
    """What is used of `vllm.LLMEngine`, in the process of the policy."""

    model_config: Any

    def add_request(self, request_id: str, prompt: Any, params: Any) -> str: ...
    def has_unfinished_requests(self) -> bool: ...
    def step(self) -> list[Any]: ...
    def collective_rpc(
        self, method: str, timeout: float | None = None, args: tuple = (), kwargs: Any = None
    ) -> list[Any]: ...
    def reset_prefix_cache(self) -> bool: ...
    def reset_encoder_cache(self) -> None: ...


def require_vllm(device: torch.device) -> None:
    """Refuses a machine on which vLLM cannot sample."""
    try:
        found = version("vllm")
    except PackageNotFoundError:
        found = "none"
    if not found.startswith(f"{WRITTEN_FOR}."):
        raise ValueError(
            f'rollout.sampler = "vllm" needs vllm {WRITTEN_FOR}: got {found}. Install it with '
            "`pip install 'copd[vllm]'` in an environment of its own, or use \"internal\"."
        )
    if device.type != "cuda":
        raise ValueError(
            f'rollout.sampler = "vllm" needs a CUDA GPU: got a model on {device.type}. '
            'Use rollout.sampler = "internal".'
        )


def require_room(asked: Sequence[tuple[Any, Mapping[str, Any]]], limit: int) -> None:
    """Refuses rows that vLLM would cut off before the limit they are to have."""
    for prompt, settings in asked:
        length = len(prompt["prompt_token_ids"])
        if length + settings["max_tokens"] > limit:
            raise ValueError(
                f"vLLM has room for {limit} tokens a row: got a prompt of {length} and "
                f"completions of up to {settings['max_tokens']}. Raise rollout.vllm.memory_share, "
                "or lower rollout.max_completion_tokens."
            )


class VllmEngine:
    """The one vLLM of a process, for all its policies; starts when it is first asked.

    It is given a folder without weights: those it has are always handed over by a policy, so
    that one it was not given is noticed at once.
    """

    def __init__(self, rollout: RolloutConfig, dtype: str) -> None:
        self._rollout = rollout
        self._dtype = dtype
        self._running: Running | None = None
        self._holds: object = None

    def hold(self, weights: object, policy: Policy) -> None:
        """Takes over a policy's weights in place, unless it has this very version of them.

        What was kept of the older ones is forgotten: keys and values of prompts, and what the
        tower made of pixels.
        """
        if self._holds is weights:
            return
        self._holds = None
        running = self._running = self._running or self._start(policy)
        torch.cuda.synchronize()
        with torch.no_grad():
            iterator = iter(policy.state().items())
            running.collective_rpc("reload_weights", kwargs={"weights_iterator": iterator})
        running.reset_encoder_cache()
        if not running.reset_prefix_cache():
            raise RuntimeError("vLLM kept keys and values of older weights: requests are running.")
        self._holds = weights

    def write(self, asked: Sequence[tuple[Any, Mapping[str, Any]]]) -> list[list[VllmOutput]]:
        """The completions of each prompt, given as an input with its settings."""
        assert self._running is not None, "weights are handed over first"
        vllm = import_module("vllm")
        final_only = import_module("vllm.sampling_params").RequestOutputKind.FINAL_ONLY
        require_room(asked, self._running.model_config.max_model_len)
        for number, (prompt, settings) in enumerate(asked):
            params = vllm.SamplingParams(**settings, output_kind=final_only)
            self._running.add_request(str(number), prompt, params)
        done: dict[int, list[VllmOutput]] = {}
        while self._running.has_unfinished_requests():
            for output in self._running.step():
                if output.finished:
                    done[int(output.request_id)] = output.outputs
        return [done[number] for number in range(len(asked))]

    def _start(self, policy: Policy) -> Running:
        """In this process, so that weights are handed over as they are in memory.

        Log-probabilities are those after bias and temperature. Pixels come normalised.
        """
        vllm = import_module("vllm")
        usage = import_module("vllm.usage.usage_lib").UsageContext.LLM_CLASS
        executor = import_module("vllm.v1.executor.abstract").Executor
        folder = mkdtemp(prefix="copd-vllm-")
        atexit.register(rmtree, folder, ignore_errors=True)
        policy.save_settings(folder)
        config = vllm.EngineArgs(
            model=folder,
            load_format="dummy",
            dtype=self._dtype,
            max_model_len=-1,  # whatever fits
            max_num_seqs=self._rollout.max_rows,
            gpu_memory_utilization=self._rollout.vllm.memory_share,
            logprobs_mode="processed_logprobs",
            generation_config="vllm",  # defaults, not the file's top_p and penalties
            enable_prefix_caching=True,  # a group shares its prompt
            mm_processor_cache_gb=0.0,
            mm_device_do_normalize=False,
            disable_log_stats=True,
        ).create_engine_config(usage)
        return vllm.LLMEngine(
            config,
            executor.get_class(config),
            log_stats=False,
            usage_context=usage,
            multiprocess_mode=False,
        )


class VllmSampler:
    """A policy's `Sampler` that writes with vLLM, without a gradient."""

    def __init__(self, policy: Policy, engine: VllmEngine) -> None:
        self._policy = policy
        self._engine = engine
        self._weights = object()  # another one for every change
        self._banned: list[int] = policy.banned.nonzero()[:, 0].tolist()
        if len(self._banned) > MAX_BANNED:
            raise ValueError(
                f"vLLM can ban {MAX_BANNED} tokens: got {len(self._banned)} control tokens and "
                'rows without a name. Use rollout.sampler = "internal".'
            )

    def refresh(self) -> None:
        """The next call hands the weights over again."""
        self._weights = object()

    def sample(
        self,
        batches: Sequence[SamplingRequest],
        max_completion_tokens: int,
        *,
        keep_graph: bool = False,
    ) -> SamplingResult:
        """All batches at once; vLLM decides how many rows it writes side by side."""
        self._engine.hold(self._weights, self._policy)
        asked = []
        for wanted in batches:
            for index, prompt in enumerate(wanted.prompts):
                settings = sampling_settings(
                    wanted,
                    index,
                    max_tokens=max_completion_tokens,
                    banned=self._banned,
                    ends=self._policy.end_tokens,
                )
                asked.append((self._input(prompt), settings))
        written = iter(self._engine.write(asked))
        groups = []
        for wanted in batches:
            rows: list[VllmOutput] = []
            for _ in wanted.prompts:
                own = next(written)
                rows += own if wanted.temperature else own * wanted.group_size
            groups.append(self._policy.grouped(to_samples(rows), wanted.group_size))
        return SamplingResult(groups, None)

    def _input(self, prompt: Prompt) -> dict[str, Any]:
        """As vLLM's own processor would give it, with the policy's tokens and pixels.

        vLLM would scale pictures by another library, and read clips by its own rules.
        """
        token_ids = prompt.input_ids.tolist()
        vision = self._policy.backbone.vision
        if not prompt.media or vision is None:
            return {"type": "token", "prompt_token_ids": token_ids}
        if "second_per_grid_ts" in prompt.media:
            raise ValueError(
                "vLLM puts what follows a clip of Qwen2.5-VL at other positions than transformers "
                "and copd: got a prompt with a clip. Use a Qwen3-VL, or rollout.sampler = "
                '"internal".'
            )
        inputs = import_module("vllm.multimodal.inputs")
        model, fields, placed = self._policy.model.config, {}, {}
        tokens: dict[Kind, int] = {
            "image": vision.image_token,
            "video": vision.video_token,
        }
        for kind, token in tokens.items():
            pixels, grid = FIELDS[kind]
            if grid not in prompt.media:
                continue
            merge_size = model.vision_config.spatial_merge_size
            placed[kind] = place_media(prompt, kind, token=token, merge_size=merge_size)
            config = inputs.MultiModalFieldConfig
            fields[pixels] = config.flat_from_sizes(kind, prompt.media[grid].prod(dim=1))
            fields[grid] = config.batched(kind, keep_on_cpu=True)
        return {
            "type": "multimodal",
            "prompt_token_ids": token_ids,
            "mm_kwargs": inputs.MultiModalKwargsItems.from_hf_inputs(
                BatchFeature(prompt.media), fields
            ),
            "mm_hashes": {kind: [one.identity for one in own] for kind, own in placed.items()},
            "mm_placeholders": {
                kind: [
                    inputs.PlaceholderRange(one.offset, one.length, one.is_visual) for one in own
                ]
                for kind, own in placed.items()
            },
        }
