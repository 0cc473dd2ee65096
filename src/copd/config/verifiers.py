"""Settings of the verifiers, which give a completion its reward, one class per kind."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from copd.config.sections import NonNegativeFloat, PositiveFloat, Section

Threshold = Annotated[float, Field(strict=True, gt=0, le=1)]
Letters = Annotated[str, Field(pattern=r"^[A-Z]{2,26}$")]
FunctionName = Annotated[str, Field(pattern=r"^\w+(\.\w+)*:\w+(\.\w+)*$")]


class ExactVerifier(Section):
    """Reward 1 if the answer equals the reference exactly."""

    type: Literal["exact"] = "exact"
    mark: str = "#"
    """The answer is the text after the last mark; with "", the whole completion."""


class NumericVerifier(Section):
    """Reward 1 if the last number is close to the reference's, such as 1,080 or $18.50."""

    type: Literal["numeric"] = "numeric"
    mark: str = "#"
    """The number is expected after the last mark; with "", anywhere in the completion."""
    tolerance: NonNegativeFloat = 1e-6
    """Largest difference from the reference."""


class ChoiceVerifier(Section):
    """Reward 1 for the letter of a multiple choice: B, (B), B., Answer: B."""

    type: Literal["choice"] = "choice"
    mark: str = ""
    """The letter is expected after the last mark; with "", anywhere in the completion."""
    letters: Letters = "ABCDEFGHIJ"
    """The letters to choose from."""


class MathVerifier(Section):
    """Reward 1 if math-verify finds the answer equal, such as 0.5 and \\frac12; extra `math`."""

    type: Literal["math"] = "math"
    mark: str = ""
    """The answer is the text after the last mark; with "", math-verify finds it."""
    timeout_seconds: PositiveFloat = 5.0
    """CPU seconds per completion; beyond them its reward is 0."""


class IntervalVerifier(Section):
    """Intersection over union of two spans of time: [3.5, 7.0], 3.5 to 7, 01:05 - 01:20."""

    type: Literal["interval"] = "interval"
    mark: str = "#"
    """The span is expected after the last mark; with "", anywhere in the completion."""
    threshold: Threshold | None = None
    """If set, the reward is 1 from this value on and 0 below."""


class BoxVerifier(Section):
    """Intersection over union of two boxes in an image: [10, 20, 110, 220]."""

    type: Literal["box"] = "box"
    mark: str = "#"
    """The box is expected after the last mark; with "", anywhere in the completion."""
    form: Literal["corners", "size"] = "corners"
    """The four numbers are x1, y1, x2, y2 ("corners") or x, y, width, height ("size")."""
    threshold: Threshold | None = None
    """If set, the reward is 1 from this value on and 0 below."""


class FormatVerifier(Section):
    """Reward 1 for the blocks in order, each once, with nothing else; for a part of a mixture."""

    type: Literal["format"] = "format"
    tags: Annotated[tuple[Annotated[str, Field(pattern=r"^\w+$")], ...], Field(min_length=1)] = (
        "think",
        "answer",
    )
    """The blocks: <think>...</think><answer>...</answer>."""


class FunctionVerifier(Section):
    """The reward of your own function, (text: str, answer: str) -> float in [0, 1].

    It runs in a process of its own, limited in time and memory.
    """

    type: Literal["function"] = "function"
    name: FunctionName
    """The function as "package.module:function", importable where copd runs."""
    timeout_seconds: PositiveFloat = 5.0
    """CPU seconds per call; beyond them the reward is 0."""
    memory_gib: PositiveFloat | None = 8.0
    """Address space of the process, in GiB."""


_SingleVerifier = (
    ExactVerifier
    | NumericVerifier
    | ChoiceVerifier
    | MathVerifier
    | IntervalVerifier
    | BoxVerifier
    | FormatVerifier
    | FunctionVerifier
)


class MixturePart(Section):
    """One verifier of a mixture."""

    weight: PositiveFloat
    """Share of the reward; the shares sum to 1."""
    verifier: Annotated[_SingleVerifier, Field(discriminator="type")]
    """Any kind but a mixture."""


class MixtureVerifier(Section):
    """The weighted sum of other verifiers, such as 0.9 of the answer and 0.1 of the format."""

    type: Literal["mixture"] = "mixture"
    parts: Annotated[tuple[MixturePart, ...], Field(min_length=2)]
    """A list of {weight = 0.9, verifier = {...}}; the first verifier extracts the answer."""

    @model_validator(mode="after")
    def _check(self) -> MixtureVerifier:
        total = sum(part.weight for part in self.parts)
        if abs(total - 1) > 1e-6:
            raise ValueError(
                f"the weights of a mixture must sum to 1, so that its reward stays in [0, 1]: got "
                f"{total:g}. Change a weight of verifier.parts."
            )
        return self


VerifierConfig = Annotated[_SingleVerifier | MixtureVerifier, Field(discriminator="type")]
