"""Which problems a run is about: the kinds of domains. Reads no data."""

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
    """The built-in world of handwritten digits."""

    type: Literal["digits"]
    """Which kind of domain this is."""
    modality: Literal["text", "image", "video"]
    """What the problems are made of."""
    suites: tuple[str, ...] = ()
    """Suites to use; empty means all of them."""
    num_train: Count = 100_000
    """Problems to learn from."""
    num_validation: Count = 512
    """Problems that choose settings, such as merge weights."""
    num_test: Count = 1024
    """Problems that are only ever measured."""


class ColumnsConfig(Section):
    """Which column holds what; unset ones are recognised. A dot goes into a table: "a.b"."""

    prompt: Location | None = None
    """Text or chat messages (known: prompt, problem, question, messages)."""
    answer: Location | None = None
    """The reference (known: reward_model.ground_truth, answer, solution)."""
    images: Location | None = None
    """One picture or several (known: images, image)."""
    videos: Location | None = None
    """One clip or several (known: videos, video)."""
    suite: Location | None = None
    """What results are grouped by (known: suite, data_source)."""


class FilesConfig(Section):
    """Your own problems: JSONL, JSON, CSV, Parquet, or a Hugging Face data set."""

    type: Literal["files"]
    """Which kind of domain this is."""
    path: Locations
    """A file, several, a folder, or a data set: a save_to_disk folder or hub name (name:subset)."""
    validation_path: Locations | None = None
    """Problems that choose settings; else a share of `path`, or its own such split."""
    test_path: Locations | None = None
    """Problems that are only ever measured; else a share of `path`, or its own such split."""
    validation_share: Share = 0.05
    """Share of `path` that becomes validation problems."""
    test_share: Share = 0.1
    """Share of `path` that becomes test problems."""
    num_train: Count | None = None
    """Problems to learn from; all there are by default."""
    num_validation: Count | None = None
    """Validation problems; all there are by default."""
    num_test: Count | None = None
    """Test problems; all there are by default."""
    columns: ColumnsConfig = ColumnsConfig()
    """Which column holds what."""
    system_prompt: str | None = None
    """First turn of problems that have no system turn of their own."""
    prompt_suffix: str = ""
    """Added to the end of every prompt, such as "\\nThink, then answer after ####."."""
    media_root: Location | None = None
    """Folder that all pictures and clips must lie in; by default that of the file."""
    max_pixels: Annotated[int, Field(strict=True, ge=1, le=89_000_000)] = 2**26
    """Larger pictures are refused; the frames of a clip together are shrunk to it."""
    fps: PositiveFloat = 2.0
    """Frames taken per second of a clip."""
    max_frames: Annotated[int, Field(strict=True, ge=2, le=2048)] = 32
    """Frames taken of a clip at most, then evenly spaced."""
    check_media: StrictBool = True
    """Decode every picture and clip once before training; false only looks whether they exist."""
    drop_bad: StrictBool = False
    """Leave out problems that cannot be used, and say how many; false refuses to train."""
    verifier: VerifierConfig = ExactVerifier()
    """What counts as a right answer."""
    fingerprint: str | None = None
    """Filled in by copd when a run begins, so that it is not resumed on other data."""

    @model_validator(mode="after")
    def _check(self) -> FilesConfig:
        if self.validation_share + self.test_share >= 1:
            raise ValueError(
                "validation_share and test_share must leave problems to learn from: got "
                f"{self.validation_share} and {self.test_share}. Lower one of them."
            )
        return self


class GymConfig(Section):
    """Problems from generators of reasoning-gym, scored by its scorers; needs the extra `gym`."""

    type: Literal["reasoning_gym"]
    """Which kind of domain this is."""
    dataset: GymDatasets
    """Name of a generator, such as "chain_sum", or a list: each is a suite."""
    config: dict[str, Any] = Field(default={})
    """Its own parameters, such as {max_terms = 3}; of a list, such a table per name."""
    seed: NonNegativeInt = 0
    """Another one gives other problems."""
    num_train: GymSize = 100_000
    """Problems to learn from."""
    num_validation: GymSize = 512
    """Problems that choose settings, such as merge weights."""
    num_test: GymSize = 1024
    """Problems that are only ever measured."""
    system_prompt: str | None = None
    """First turn, if set."""
    prompt_suffix: str = (
        "\n\nThink step by step, then write only the final answer between <answer> and </answer>."
    )
    """Added to the end of every question: how to give the answer."""
    mark: str = "<answer>"
    """The answer is what follows the last mark; of a tag, what it encloses."""
    timeout_seconds: PositiveFloat = 5.0
    """Processor seconds the scoring of a completion may cost before it earns nothing."""

    @property
    def parameters(self) -> dict[str, dict[str, Any]]:
        """The parameters of every generator by its name."""
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
    """How many problems a split has, once the data have been looked at."""
    found = {
        "train": config.num_train,
        "validation": config.num_validation,
        "test": config.num_test,
    }[split]
    assert found is not None, "a run fills in what its files decide before it begins"
    return found
