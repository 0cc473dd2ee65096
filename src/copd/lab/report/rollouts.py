"""Rollouts to read: some groups of every branch and action, spread over the run, with the problem
rebuilt, the completion cut into its tokens, and what the verifier read."""

from __future__ import annotations

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
    """The rollouts of a page; token texts and pictures are kept once."""

    groups: list[dict[str, Any]] = field(default_factory=list)
    album: Album = field(default_factory=Album)
    pieces: dict[str, int] = field(default_factory=dict)
    num_recorded: int = 0

    def piece(self, text: str) -> int:
        """The number of a token's text."""
        return self.pieces.setdefault(text, len(self.pieces))

    def to_json(self) -> dict[str, Any]:
        """Plain values for the page."""
        return {
            "groups": self.groups,
            "pictures": self.album.uris,
            "pieces": list(self.pieces),
            "recorded": self.num_recorded,
        }


def add_rollouts(gallery: Gallery, run: RunFiles, number: int, *, quota: int) -> None:
    """About `quota` groups of the run, which is the page's run `number`."""
    path = run.path / _FILE
    needs = ("step", "branch", "action", "problem", "rollouts")
    keys = [(str(r["branch"]), str(r["action"])) for r in lines(path, run.notes, needs=needs)]
    gallery.num_recorded += len(keys)
    chosen = choose(keys, quota)
    domains = load_domains(run.config.domains) if run.config else {}
    read = _reader(run) if chosen else None
    for place, record in enumerate(lines(path, [], needs=needs)):
        if place in chosen:
            what = f"{_FILE}, line {place + 1}"
            group = run.attempt(what, lambda r=record: _group(gallery, run, r, domains, read), None)
            if group is not None:
                gallery.groups.append({"run": number, **group})


def choose(keys: Sequence[tuple[str, str]], quota: int) -> set[int]:
    """Places of at most `quota` records (or one of each key), evenly over each key's records."""
    places: dict[tuple[str, str], list[int]] = defaultdict(list)
    for place, key in enumerate(keys):
        places[key].append(place)
    share = max(1, quota // max(1, len(places)))
    spread = {
        key: np.linspace(len(own) - 1, 0, min(share, len(own))).round().astype(int).tolist()
        for key, own in places.items()
    }
    return {places[key][i] for key, kept in spread.items() for i in kept}


def _reader(run: RunFiles) -> TokenReader | None:
    """How the run's model writes its tokens; None, with a note, where it cannot be found."""
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
    name = record["problem"]
    domain = domains.get(name["domain"])
    problem = _problem(domain, name)
    rewards = [float(rollout["reward"]) for rollout in record["rollouts"]]
    advantages = _advantages(run, rewards)
    asked = (
        {"suite": problem.suite, "answer": problem.answer, "parts": _parts(gallery, problem)}
        if problem
        else {"suite": "", "answer": "", "parts": None}
    )
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
        for rollout, reward, advantage in zip(record["rollouts"], rewards, advantages, strict=True)
    ]
    place = {"split": name["split"], "index": name["index"]}
    parts = {**action_parts(record["action"]), "domain": name["domain"]}
    step, branch = int(record["step"]), str(record["branch"])
    return {"step": step, "b": branch, **parts, **place, **asked, "rollouts": rollouts}


def _problem(domain: Domain | None, name: Mapping[str, Any]) -> Problem | None:
    """The problem again, if its domain still has it: files may have moved since."""
    try:
        return domain.problem(name["split"], name["index"]) if domain else None
    except (*DAMAGE, OSError):
        return None


def _advantages(run: RunFiles, rewards: list[float]) -> list[float]:
    """As the update computed them, but for rewards rounded on the way to the file."""
    if run.config is None or len(rewards) < 2:
        return [0.0] * len(rewards)
    loss = run.config.loss
    table = group_relative(
        torch.tensor([rewards]), eps=loss.advantage_eps, scale=loss.scale_advantages
    )
    return table[0].tolist()


def _completion(
    gallery: Gallery, rollout: Mapping[str, Any], read: TokenReader | None
) -> dict[str, Any]:
    """Tokens as numbers of pieces and the teacher's delta, both cut at `MAX_TOKENS`."""
    ids = rollout["token_ids"]
    delta = rollout.get("delta")
    tokens = None if read is None else [gallery.piece(text) for text in read(ids[:MAX_TOKENS])]
    signal = None if delta is None else [rounded(value) for value in delta[:MAX_TOKENS]]
    return {"tokens": tokens, "delta": signal, "length": len(ids)}


def _parts(gallery: Gallery, problem: Problem) -> list[dict[str, Any]]:
    return [_part(gallery, part) for message in problem.messages for part in message.content]


def _part(gallery: Gallery, part: ContentPart) -> dict[str, Any]:
    """Text, or numbers of pictures in the album; an empty list when it is full."""
    if isinstance(part, Text):
        return {"text": part.text}
    if isinstance(part, Image):
        place, (height, width) = gallery.album.place(part.pixels), part.pixels.shape[:2]
        return {"frames": [] if place is None else [place], "width": width, "height": height}
    num_frames, height, width = part.frames.shape[:3]
    shown = np.linspace(0, num_frames - 1, min(MAX_FRAMES, num_frames)).round().astype(int)
    places = [gallery.album.place(part.frames[i]) for i in shown]
    complete = [] if None in places else places
    size = {"width": width, "height": height}
    return {"frames": complete, **size, "fps": part.fps, "of": num_frames}
