"""Sample a policy's completions with vLLM, from the policy's own weights.

Written against the sources of vLLM 0.33.0 and not run yet, since it needs a GPU. The translation to
and from vLLM's values (vllm_format.py) is tested; the code here that calls vLLM is not.
"""

from __future__ import annotations

import atexit
from collections.abc import Mapping, Sequence
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from shutil import rmtree
from tempfile import mkdtemp
from typing import Any

import torch
from transformers import BatchFeature

from copd.config import RolloutConfig
from copd.policy.policy import Policy
from copd.policy.rendering.pixels import MEDIA_FIELDS
from copd.policy.rendering.render import Prompt
from copd.policy.sampling.protocol import SamplingRequest, SamplingResult
from copd.policy.sampling.sampler import to_completions
from copd.policy.sampling.vllm_format import (
    VllmOutput,
    locate_media,
    sampling_settings,
    to_samples,
)

WRITTEN_FOR = "0.33"
"""Minor version of vLLM: its engine interface changes from one to the next."""

MAX_BANNED = 1024
"""Tokens that can have a bias in vLLM's model runner (`MAX_NUM_LOGIT_BIAS_TOKENS`)."""

VllmRequest = tuple[Any, Mapping[str, Any]]
"""A prompt as vLLM takes it, and its sampling settings."""


def require_vllm(device: torch.device) -> None:
    """Raise if vLLM cannot sample on this machine."""
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


def require_room(requests: Sequence[VllmRequest], limit: int) -> None:
    """Raise if vLLM would cut off a row before its limit."""
    for prompt, settings in requests:
        length = len(prompt["prompt_token_ids"])
        if length + settings["max_tokens"] > limit:
            raise ValueError(
                f"vLLM has room for {limit} tokens a row: got a prompt of {length} and "
                f"completions of up to {settings['max_tokens']}. Raise rollout.vllm.memory_share, "
                "or lower rollout.max_completion_tokens."
            )


class VllmEngine:
    """The one vLLM engine of a process, which all its policies share; it starts on first use.

    It is started from a folder without weights. A policy always loads its weights, so that missing
    ones are noticed at once.
    """

    def __init__(self, rollout: RolloutConfig, dtype: str) -> None:
        self._rollout = rollout
        self._dtype = dtype
        self._engine: Any = None  # a `vllm.LLMEngine`
        self._weights: object = None

    def load_weights(self, weights: object, policy: Policy) -> None:
        """Load a policy's weights in place, unless the engine has this version of them.

        This also drops what it has computed with older ones: keys and values of prompts, and
        features of pixels.
        """
        if self._weights is weights:
            return
        self._weights = None
        engine = self._engine = self._engine or self._start(policy)
        torch.cuda.synchronize()
        with torch.no_grad():
            iterator = iter(policy.state_dict().items())
            engine.collective_rpc("reload_weights", kwargs={"weights_iterator": iterator})
        engine.reset_encoder_cache()
        if not engine.reset_prefix_cache():
            raise RuntimeError("vLLM holds keys and values of older weights: requests are running.")
        self._weights = weights

    def generate(self, requests: Sequence[VllmRequest]) -> list[list[VllmOutput]]:
        """Return the completions of each request."""
        assert self._engine is not None, "weights are loaded first"
        vllm = import_module("vllm")
        final_only = import_module("vllm.sampling_params").RequestOutputKind.FINAL_ONLY
        require_room(requests, self._engine.model_config.max_model_len)
        for number, (prompt, settings) in enumerate(requests):
            params = vllm.SamplingParams(**settings, output_kind=final_only)
            self._engine.add_request(str(number), prompt, params)
        done: dict[int, list[VllmOutput]] = {}
        while self._engine.has_unfinished_requests():
            for output in self._engine.step():
                if output.finished:
                    done[int(output.request_id)] = output.outputs
        return [done[number] for number in range(len(requests))]

    def _start(self, policy: Policy) -> Any:
        """Start vLLM in this process, so that it loads weights from memory."""
        vllm = import_module("vllm")
        usage = import_module("vllm.usage.usage_lib").UsageContext.LLM_CLASS
        executor = import_module("vllm.v1.executor.abstract").Executor
        folder = mkdtemp(prefix="copd-vllm-")
        atexit.register(rmtree, folder, ignore_errors=True)
        save_settings(policy, folder)
        config = vllm.EngineArgs(
            model=folder,
            load_format="dummy",
            dtype=self._dtype,
            max_model_len=-1,  # whatever fits
            max_num_seqs=self._rollout.max_rows,
            gpu_memory_utilization=self._rollout.vllm.memory_share,
            logprobs_mode="processed_logprobs",  # after bias and temperature
            generation_config="vllm",  # defaults, not the file's top_p and penalties
            enable_prefix_caching=True,  # a group shares its prompt
            mm_processor_cache_gb=0.0,
            mm_device_do_normalize=False,  # pixels are normalized already
            disable_log_stats=True,
        ).create_engine_config(usage)
        return vllm.LLMEngine(
            config,
            executor.get_class(config),
            log_stats=False,
            usage_context=usage,
            multiprocess_mode=False,
        )


def save_settings(policy: Policy, folder: str | Path) -> None:
    """Save a policy as a Hugging Face folder without weights."""
    config, generation = policy.model.config, policy.model.generation_config
    assert generation is not None, "checked when the policy is built"
    config.architectures = [type(policy.model).__name__]
    config.save_pretrained(folder)
    generation.save_pretrained(folder)
    policy.renderer.save(folder)


class VllmSampler:
    """A `Sampler` that samples a policy's completions with vLLM, without a gradient."""

    def __init__(self, policy: Policy, engine: VllmEngine) -> None:
        self._policy = policy
        self._engine = engine
        self._weights = object()  # a new object for every change of weights
        self._banned: list[int] = policy.banned.nonzero()[:, 0].tolist()
        if len(self._banned) > MAX_BANNED:
            raise ValueError(
                f"vLLM can ban {MAX_BANNED} tokens: got {len(self._banned)} control tokens and "
                'rows without a name. Use rollout.sampler = "internal".'
            )

    def refresh(self) -> None:
        """Load the weights again before the next completions."""
        self._weights = object()

    def sample(
        self,
        batches: Sequence[SamplingRequest],
        max_completion_tokens: int,
        *,
        keep_graph: bool = False,
    ) -> SamplingResult:
        """Sample all requests at once; vLLM decides how many rows it decodes together."""
        self._engine.load_weights(self._weights, self._policy)
        requests = []
        for batch in batches:
            for index, prompt in enumerate(batch.prompts):
                settings = sampling_settings(
                    batch,
                    index,
                    max_tokens=max_completion_tokens,
                    banned=self._banned,
                    ends=self._policy.end_tokens,
                )
                requests.append((self._input(prompt), settings))
        outputs = iter(self._engine.generate(requests))
        completions = []
        for batch in batches:
            rows: list[VllmOutput] = []
            for _ in batch.prompts:
                own = next(outputs)
                rows += own if batch.temperature else own * batch.group_size
            samples = to_samples(rows)
            completions.append(
                to_completions(samples, self._policy.tokenizer, self._policy.end_tokens)
            )
        return SamplingResult(completions, None)

    def _input(self, prompt: Prompt) -> dict[str, Any]:
        """Return a prompt as vLLM's own processor would, but with the policy's tokens and pixels.

        vLLM would resize images with another library, and read videos by rules of its own.
        """
        token_ids = prompt.input_ids.tolist()
        vision = self._policy.backbone.vision
        if not prompt.media or vision is None:
            return {"type": "token", "prompt_token_ids": token_ids}
        if "second_per_grid_ts" in prompt.media:
            raise ValueError(
                "vLLM puts what follows a video of Qwen2.5-VL at other positions than transformers "
                "and copd: got a prompt with a video. Use a Qwen3-VL, or rollout.sampler = "
                '"internal".'
            )
        inputs = import_module("vllm.multimodal.inputs")
        config, fields, spans = inputs.MultiModalFieldConfig, {}, {}
        merge_size = self._policy.model.config.vision_config.spatial_merge_size
        tokens = {"image": vision.image_token, "video": vision.video_token}
        for kind, (pixels, grid) in MEDIA_FIELDS.items():
            if grid in prompt.media:
                spans[kind] = locate_media(prompt, kind, token=tokens[kind], merge_size=merge_size)
                fields[pixels] = config.flat_from_sizes(kind, prompt.media[grid].prod(dim=1))
                fields[grid] = config.batched(kind, keep_on_cpu=True)
        return {
            "type": "multimodal",
            "prompt_token_ids": token_ids,
            "mm_kwargs": inputs.MultiModalKwargsItems.from_hf_inputs(
                BatchFeature(prompt.media), fields
            ),
            "mm_hashes": {kind: [span.identity for span in own] for kind, own in spans.items()},
            "mm_placeholders": {
                kind: [inputs.PlaceholderRange(s.offset, s.length, s.is_visual) for s in own]
                for kind, own in spans.items()
            },
        }
