"""Settings of the domains, one class per kind."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field, StrictBool, model_validator

from copd.config.sections import Count, NonNegativeInt, PositiveFloat, Section
from copd.config.verifiers import ExactVerifier, VerifierConfig

if TYPE_CHECKING:  # help and plan answer without numpy
    from copd.types import Split

Share = Annotated[float, Field(strict=True, ge=0, lt=1)]
Location = Annotated[str, Field(min_length=1)]
GymDatasets = Location | Annotated[tuple[Location, ...], Field(min_length=1)]
GymSize = Annotated[int, Field(strict=True, ge=1, le=2**28)]
Locations = Location | Annotated[tuple[Location, ...], Field(min_length=1)]


class DigitsConfig(Section):
    """The built-in problems about handwritten digits, as text, images or videos."""

    type: Literal["digits"]
    modality: Literal["text", "image", "video"]
    """What the problems consist of."""
    suites: tuple[str, ...] = ()
    """Suites to use; empty means all."""
    num_train: Count = 100_000
    """Training problems."""
    num_validation: Count = 512
    """Validation problems, to choose settings such as merge weights."""
    num_test: Count = 1024
    """Test problems."""


class ColumnsConfig(Section):
    """Names of the columns; unset ones are recognised. A dot enters a nested table: "a.b"."""

    prompt: Location | None = None
    """Text or chat messages (known: prompt, problem, question, messages)."""
    answer: Location | None = None
    """The reference answer (known: reward_model.ground_truth, answer, solution)."""
    images: Location | None = None
    """One image or several (known: images, image)."""
    videos: Location | None = None
    """One video or several (known: videos, video)."""
    suite: Location | None = None
    """Group that results are reported for (known: suite, data_source)."""


class FilesConfig(Section):
    """Your own problems: JSONL, JSON, CSV, Parquet, or a Hugging Face data set."""

    type: Literal["files"]
    path: Locations
    """One or several files, a folder, or a data set: a save_to_disk folder or a name on the Hugging
    Face hub (name:subset)."""
    validation_path: Locations | None = None
    """Validation problems; by default the validation split of `path`, or a share of it."""
    test_path: Locations | None = None
    """Test problems; by default the test split of `path`, or a share of it."""
    validation_share: Share = 0.05
    """Share of `path` for validation."""
    test_share: Share = 0.1
    """Share of `path` for testing."""
    num_train: Count | None = None
    """Training problems; by default all."""
    num_validation: Count | None = None
    """Validation problems; by default all."""
    num_test: Count | None = None
    """Test problems; by default all."""
    columns: ColumnsConfig = ColumnsConfig()
    system_prompt: str | None = None
    """System turn of the problems that have none of their own."""
    prompt_suffix: str = ""
    """Text at the end of every prompt, such as "\\nThink, then answer after ####."."""
    media_root: Location | None = None
    """Folder that must contain all images and videos; by default that of the file."""
    max_pixels: Annotated[int, Field(strict=True, ge=1, le=89_000_000)] = 2**26
    """Limit of an image (larger ones are refused) and of a video (its frames are shrunk to fit)."""
    fps: PositiveFloat = 2.0
    """Frames per second to take from a video."""
    max_frames: Annotated[int, Field(strict=True, ge=2, le=2048)] = 32
    """Limit of frames per video; more are thinned out evenly."""
    check_media: StrictBool = True
    """Decode every image and video once before training; false only checks that they exist."""
    drop_bad: StrictBool = False
    """Leave out unusable problems and report their number; false refuses to train."""
    verifier: VerifierConfig = ExactVerifier()
    fingerprint: str | None = None
    """Set by copd at the start of a run, to refuse resuming it on other data."""

    @model_validator(mode="after")
    def _check(self) -> FilesConfig:
        if self.validation_share + self.test_share >= 1:
            raise ValueError(
                "validation_share and test_share must leave problems to learn from: got "
                f"{self.validation_share} and {self.test_share}. Lower one of them."
            )
        return self


class GymConfig(Section):
    """Problems of reasoning-gym, generated and scored by it; needs the extra `gym`."""

    type: Literal["reasoning_gym"]
    dataset: GymDatasets
    """Name of a generator, such as "chain_sum", or a list of names; each is a suite."""
    config: dict[str, Any] = Field(default={})
    """Parameters of the generator, such as {max_terms = 3}; for a list, such a table per name."""
    seed: NonNegativeInt = 0
    """Seed of the problems."""
    num_train: GymSize = 100_000
    """Training problems."""
    num_validation: GymSize = 512
    """Validation problems, to choose settings such as merge weights."""
    num_test: GymSize = 1024
    """Test problems."""
    system_prompt: str | None = None
    """System turn, if set."""
    prompt_suffix: str = (
        "\n\nThink step by step, then write only the final answer between <answer> and </answer>."
    )
    """Text at the end of every prompt: how to give the answer."""
    mark: str = "<answer>"
    """The answer is the text after the last mark; after a tag, the text it encloses."""
    timeout_seconds: PositiveFloat = 5.0
    """CPU seconds for scoring a completion; beyond them its reward is 0."""

    @property
    def parameters(self) -> dict[str, dict[str, Any]]:
        """The parameters of each generator, by name."""
        if isinstance(self.dataset, str):
            return {self.dataset: self.config}
        return {name: self.config.get(name, {}) for name in self.dataset}

    @model_validator(mode="after")
    def _check(self) -> GymConfig:
        if isinstance(self.dataset, str):
            return self
        if len(set(self.dataset)) < len(self.dataset):
            raise ValueError(
                f"dataset must name each generator once: got {list(self.dataset)}. "
                "Remove the repeated one."
            )
        for name, table in self.config.items():
            if name not in self.dataset or not isinstance(table, dict):
                raise ValueError(
                    f"with several generators, config must hold a table for each by its name "
                    f"({', '.join(self.dataset)}): got {name} = {table!r}. "
                    f"Write config = {{ {self.dataset[0]} = {{ ... }} }}."
                )
        return self


DomainConfig = Annotated[DigitsConfig | FilesConfig | GymConfig, Field(discriminator="type")]


def num_problems(config: DomainConfig, split: Split) -> int:
    """Return the number of problems in a split.

    Args:
        config: A domain; one of files must have its numbers filled in, see `with_sizes`.
        split: "train", "validation" or "test".

    Returns:
        The number of problems.
    """
    number = getattr(config, f"num_{split}")
    assert number is not None, "a run fills in what its files decide before it starts"
    return number
