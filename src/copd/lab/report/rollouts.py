"""The rollouts of a page: groups spread over the run, with problem, tokens, signal and answer."""

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from copd.domains import Domain, load_domains
from copd.functional import group_relative
from copd.lab.report.curves import action_parts, rounded
from copd.lab.report.pictures import Album
from copd.lab.report.reading import DAMAGE, RunFiles, lines
from copd.policy.tiny import resolve
from copd.policy.tokens import token_reader
from copd.types import ContentPart, Image, Problem, Text

MAX_GROUPS = 300
"""Groups of a page, all runs together."""
MAX_TOKENS = 600
"""Tokens shown of one completion."""
MAX_FRAMES = 24
"""Frames shown of one clip."""
_FILE = "rollouts.jsonl"
TokenReader = Callable[[Sequence[int]], list[str]]


@dataclass(eq=False)
class Gallery:
    """The rollouts of a page; token texts and pictures are stored once."""

    groups: list[dict[str, Any]] = field(default_factory=list)
    album: Album = field(default_factory=Album)
    num_recorded: int = 0
    _texts: dict[str, int] = field(default_factory=dict)

    def number(self, text: str) -> int:
        """Return the number of a token's text."""
        return self._texts.setdefault(text, len(self._texts))

    def to_json(self) -> dict[str, Any]:
        """Return plain values for the page."""
        return {
            "groups": self.groups,
            "pictures": self.album.uris,
            "token_texts": list(self._texts),
            "recorded": self.num_recorded,
        }


def add_rollouts(gallery: Gallery, run: RunFiles, number: int, *, quota: int) -> None:
    """Add about `quota` groups of the run, which is run `number` of the page."""
    path = run.path / _FILE
    needs = ("step", "branch", "action", "problem", "rollouts")
    keys = [(str(r["branch"]), str(r["action"])) for r in lines(path, run.notes, needs=needs)]
    gallery.num_recorded += len(keys)
    chosen = choose(keys, quota)
    domains = load_domains(run.config.domains, run.path) if run.config else {}
    read = _reader(run) if chosen else None
    for place, record in enumerate(lines(path, [], needs=needs)):
        if place in chosen:
            what = f"{_FILE}, line {place + 1}"
            group = run.attempt(what, lambda r=record: _group(gallery, run, r, domains, read), None)
            if group is not None:
                gallery.groups.append({"run": number, **group})


def choose(keys: Sequence[tuple[str, str]], quota: int) -> set[int]:
    """Choose about `quota` records, at least one of each key, evenly over each key's records."""
    places: dict[tuple[str, str], list[int]] = defaultdict(list)
    for place, key in enumerate(keys):
        places[key].append(place)
    share = max(1, quota // max(1, len(places)))
    return {
        own[i]
        for own in places.values()
        for i in np.linspace(len(own) - 1, 0, min(share, len(own))).round().astype(int).tolist()
    }


def _reader(run: RunFiles) -> TokenReader | None:
    """Return what splits completions into tokens; None, with a note, without a tokenizer."""
    if run.config is None:
        return None
    model = run.config.model
    try:
        return token_reader(resolve(model.path), trust_remote_code=model.trust_remote_code)
    except (OSError, ValueError) as error:
        run.notes.append(
            f"completions are shown without tokens: no tokenizer of {model.path!r} "
            f"({str(error).splitlines()[0]})."
        )
        return None


def _group(
    gallery: Gallery,
    run: RunFiles,
    record: Mapping[str, Any],
    domains: Mapping[str, Domain],
    read: TokenReader | None,
) -> dict[str, Any]:
    name, found = record["problem"], record["rollouts"]
    domain = domains.get(name["domain"])
    problem = _problem(domain, name)
    rewards = [float(rollout["reward"]) for rollout in found]
    rollouts = [
        {
            **_completion(gallery, rollout, read),
            "text": rollout["text"],
            "reward": rounded(reward),
            "advantage": rounded(advantage),
            "reading": domain.extract_answer(problem, rollout["text"])
            if domain and problem
            else "",
        }
        for rollout, reward, advantage in zip(
            found, rewards, _advantages(run, rewards), strict=True
        )
    ]
    parts = [p for m in problem.messages for p in m.content] if problem else None
    return {
        "step": int(record["step"]),
        "b": str(record["branch"]),
        **action_parts(record["action"]),
        "domain": name["domain"],
        "split": name["split"],
        "index": name["index"],
        "suite": problem.suite if problem else "",
        "answer": problem.answer if problem else "",
        "parts": None if parts is None else [_part(gallery, part) for part in parts],
        "rollouts": rollouts,
    }


def _problem(domain: Domain | None, name: Mapping[str, Any]) -> Problem | None:
    """Rebuild the problem; None if its domain does not have it, as when files have moved."""
    try:
        return domain.problem(name["split"], name["index"]) if domain else None
    except (*DAMAGE, OSError):
        return None


def _advantages(run: RunFiles, rewards: list[float]) -> list[float]:
    """Compute the advantages like the update, from rewards that were rounded in the file."""
    if run.config is None or len(rewards) < 2:
        return [0.0] * len(rewards)
    loss = run.config.loss
    advantages = group_relative(
        torch.tensor([rewards]), eps=loss.advantage_eps, scale=loss.scale_advantages
    )
    return advantages[0].tolist()


def _completion(
    gallery: Gallery, rollout: Mapping[str, Any], read: TokenReader | None
) -> dict[str, Any]:
    """Return the numbers of the tokens' texts and the teacher's delta, up to `MAX_TOKENS`."""
    ids = rollout["token_ids"]
    delta = rollout.get("delta")
    tokens = None if read is None else [gallery.number(text) for text in read(ids[:MAX_TOKENS])]
    signal = None if delta is None else [rounded(value) for value in delta[:MAX_TOKENS]]
    return {"tokens": tokens, "delta": signal, "length": len(ids)}


def _part(gallery: Gallery, part: ContentPart) -> dict[str, Any]:
    """Return a text, or the indices of pictures in the album, which are empty if it is full."""
    if isinstance(part, Text):
        return {"text": part.text}
    if isinstance(part, Image):
        place, (height, width) = gallery.album.place(part.pixels), part.pixels.shape[:2]
        return {"frames": [] if place is None else [place], "width": width, "height": height}
    num_frames, height, width = part.frames.shape[:3]
    shown = np.linspace(0, num_frames - 1, min(MAX_FRAMES, num_frames)).round().astype(int)
    places = [gallery.album.place(part.frames[i]) for i in shown]
    frames = [] if None in places else places
    return {"frames": frames, "width": width, "height": height, "fps": part.fps, "of": num_frames}
