"""Which tokens a policy may sample, and whether another policy's tokens are the same."""

from collections.abc import Mapping
from dataclasses import dataclass

from copd.policy.policy import Policy

_MAX_LISTED = 5


@dataclass(frozen=True)
class Vocabulary:
    """The tokens that a policy's completions can consist of."""

    tokens: Mapping[int, str]
    """The tokens it may sample, by id, as the tokenizer spells them."""

    ends: frozenset[int]
    """The ids of the tokens that end a completion."""

    size: int
    """The number of tokens of the tokenizer, banned ones included."""


def vocabulary_of(policy: Policy) -> Vocabulary:
    """Return the vocabulary of a policy. Spare rows of its head are not tokens.

    Args:
        policy: Any policy.

    Returns:
        The tokens that it may sample, and those that end a completion.
    """
    spelled = {token_id: token for token, token_id in policy.tokenizer.get_vocab().items()}
    allowed = (~policy.banned).nonzero()[:, 0].tolist()
    return Vocabulary({i: spelled[i] for i in allowed}, policy.end_tokens, len(spelled))


def require_same(student: Vocabulary, teacher: Vocabulary) -> None:
    """Check that a teacher can score a student's tokens: each must mean the same to both.

    Tokens that neither can sample may differ, since each model reads its own prompts.

    Args:
        student: Vocabulary of the policy that samples.
        teacher: Vocabulary of the policy that scores.

    Raises:
        ValueError: If a token that can be sampled, or the set of end tokens, differs.
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
    """List the first few ids as `12 is 'a' and 'b'`; a missing or banned token is `none`."""
    words = []
    for i in ids[:_MAX_LISTED]:
        spelled = (repr(own.tokens[i]) if i in own.tokens else "none" for own in (student, teacher))
        words.append(f"{i} is {' and '.join(spelled)}")
    return "; ".join(words + ["..."] * (len(ids) > _MAX_LISTED))
