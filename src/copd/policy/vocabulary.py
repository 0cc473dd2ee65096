"""Which tokens a policy may sample, and whether another's are the same. Knows no model weights."""

from collections.abc import Mapping
from dataclasses import dataclass

from copd.policy.policy import Policy

_SHOWN = 5


@dataclass(frozen=True)
class Vocabulary:
    """What can be in a policy's completions."""

    tokens: Mapping[int, str]
    """Those it may sample, as the tokenizer spells them, by id."""

    ends: frozenset[int]
    """Those that end a completion."""

    size: int
    """All tokens of the tokenizer, the banned ones included."""


def vocabulary_of(policy: Policy) -> Vocabulary:
    """That of a policy; spare rows of its head are no tokens."""
    spelled = {token_id: token for token, token_id in policy.tokenizer.get_vocab().items()}
    allowed = (~policy.banned).nonzero()[:, 0].tolist()
    return Vocabulary({i: spelled[i] for i in allowed}, policy.end_tokens, len(spelled))


def require_same(student: Vocabulary, teacher: Vocabulary) -> None:
    """A teacher can score a student's tokens only if each of them means the same to both.

    What neither can sample may differ: each model reads its own prompts.
    """
    ids = sorted(student.tokens.keys() | teacher.tokens.keys())
    differ = [i for i in ids if student.tokens.get(i) != teacher.tokens.get(i)]
    renamed = [i for i in differ if i not in student.ends | teacher.ends]
    if renamed:
        raise ValueError(
            "the student and the teacher must have one tokenizer: got "
            f"{student.size} and {teacher.size} tokens, {len(differ)} of those that can be sampled "
            f"differ: {_listed(student, teacher, differ)}. "
            "Choose a teacher with the student's tokenizer."
        )
    if differ or student.ends != teacher.ends:
        ends = [
            ", ".join(repr(own.tokens[i]) for i in sorted(own.ends)) for own in (student, teacher)
        ]
        raise ValueError(
            f"the student and the teacher must end completions alike: got {ends[0]} and {ends[1]}. "
            "Set the same eos_token_id in both generation_config.json, and the same eos_token in "
            "both tokenizers."
        )


def _listed(student: Vocabulary, teacher: Vocabulary, ids: list[int]) -> str:
    """The first few, as `12 is 'a' and 'b'`; a token that is missing or banned is `none`."""
    pairs = [
        [repr(own.tokens[i]) if i in own.tokens else "none" for own in (student, teacher)]
        for i in ids
    ]
    words = [f"{i} is {' and '.join(pair)}" for i, pair in zip(ids, pairs, strict=True)]
    return "; ".join(words[:_SHOWN] + ["..."] * (len(words) > _SHOWN))
