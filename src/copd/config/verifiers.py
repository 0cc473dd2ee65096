"""What earns a reward: the kinds of verifiers and their settings. Runs none of them."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from copd.config.sections import NonNegativeFloat, PositiveFloat, Section

Threshold = Annotated[float, Field(strict=True, gt=0, le=1)]
Letters = Annotated[str, Field(pattern=r"^[A-Z]{2,26}$")]
FunctionName = Annotated[str, Field(pattern=r"^\w+(\.\w+)*:\w+(\.\w+)*$")]


class ExactVerifier(Section):
    """Right is what equals the reference to the letter."""

    type: Literal["exact"] = "exact"
    """The plainest one."""
    mark: str = "#"
    """The answer is what follows the last mark; empty takes the whole completion."""


class NumericVerifier(Section):
    """Right is a last number close to that of the reference."""

    type: Literal["numeric"] = "numeric"
    """For answers such as 1,080 or $18.50."""
    mark: str = "#"
    """The number is looked for after the last mark; empty looks at the whole completion."""
    tolerance: NonNegativeFloat = 1e-6
    """Largest difference from the reference."""


class ChoiceVerifier(Section):
    """Right is the letter of the reference: B, (B), B., Answer: B."""

    type: Literal["choice"] = "choice"
    """For multiple choice."""
    mark: str = ""
    """The letter is looked for after the last mark; empty looks at the whole completion."""
    letters: Letters = "ABCDEFGHIJ"
    """The letters there are."""


class MathVerifier(Section):
    """Right is what math-verify finds equal to the reference; needs the extra `math`."""

    type: Literal["math"] = "math"
    """For LaTeX and expressions: 1/2, 0.5, \\boxed{\\frac12}."""
    mark: str = ""
    """The answer is what follows the last mark; empty lets math-verify find it."""
    timeout_seconds: PositiveFloat = 5.0
    """Processor seconds a completion may cost before it earns nothing."""


class IntervalVerifier(Section):
    """Earns how much of two spans of time is common: intersection over union."""

    type: Literal["interval"] = "interval"
    """For moments in clips: [3.5, 7.0], 3.5 to 7, 01:05 - 01:20."""
    mark: str = "#"
    """The span is looked for after the last mark; empty looks at the whole completion."""
    threshold: Threshold | None = None
    """If set, from here on the reward is 1 and below it 0."""


class BoxVerifier(Section):
    """Earns how much of two rectangles is common: intersection over union."""

    type: Literal["box"] = "box"
    """For places in pictures: [10, 20, 110, 220]."""
    mark: str = "#"
    """The box is looked for after the last mark; empty looks at the whole completion."""
    form: Literal["corners", "size"] = "corners"
    """Four numbers are x1, y1, x2, y2 ("corners") or x, y, width, height ("size")."""
    threshold: Threshold | None = None
    """If set, from here on the reward is 1 and below it 0."""


class FormatVerifier(Section):
    """Earns 1 for the asked layout, whatever the answer; meant as a part of a mixture."""

    type: Literal["format"] = "format"
    """Blocks in order, each once, nothing but white space around them."""
    tags: Annotated[tuple[Annotated[str, Field(pattern=r"^\w+$")], ...], Field(min_length=1)] = (
        "think",
        "answer",
    )
    """The blocks: <think>...</think><answer>...</answer>."""


class FunctionVerifier(Section):
    """Earns what your own function returns: (text: str, answer: str) -> float in [0, 1]."""

    type: Literal["function"] = "function"
    """Runs in a process of its own, limited in time and memory."""
    name: FunctionName
    """Where it is: "package.module:function", importable from where copd runs."""
    timeout_seconds: PositiveFloat = 5.0
    """Processor seconds a call may cost before the completion earns nothing."""
    memory_gib: PositiveFloat | None = 8.0
    """Address space of its process."""


PartVerifier = Annotated[
    ExactVerifier
    | NumericVerifier
    | ChoiceVerifier
    | MathVerifier
    | IntervalVerifier
    | BoxVerifier
    | FormatVerifier
    | FunctionVerifier,
    Field(discriminator="type"),
]


class MixturePart(Section):
    """One verifier of a mixture."""

    weight: PositiveFloat
    """Its share of the reward; all shares sum to 1."""
    verifier: PartVerifier
    """Any kind but a mixture."""


class MixtureVerifier(Section):
    """Earns the weighted sum of its parts."""

    type: Literal["mixture"] = "mixture"
    """Such as 0.9 of a right answer and 0.1 of the layout."""
    parts: Annotated[tuple[MixturePart, ...], Field(min_length=2)]
    """{weight = 0.9, verifier = {...}}; the first one says what the answer was."""

    @model_validator(mode="after")
    def _check(self) -> MixtureVerifier:
        total = sum(part.weight for part in self.parts)
        if abs(total - 1) > 1e-6:
            raise ValueError(
                f"the weights of a mixture must sum to 1, so that its reward stays in [0, 1]: got "
                f"{total:g}. Change a weight of verifier.parts."
            )
        return self


VerifierConfig = Annotated[
    ExactVerifier
    | NumericVerifier
    | ChoiceVerifier
    | MathVerifier
    | IntervalVerifier
    | BoxVerifier
    | FormatVerifier
    | FunctionVerifier
    | MixtureVerifier,
    Field(discriminator="type"),
]
