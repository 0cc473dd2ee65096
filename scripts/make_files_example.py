"""Write the digits world's image and video domains as PNG, MP4 and JSONL (examples/digits_files).

    python scripts/make_files_example.py data/digits
    copd data data/digits/image --model tiny
    copd train examples/digits_files/files.toml

The problems are those of the built-in domains, with the same splits and indices. PNG is lossless,
and so is H.264 of RGB pixels with quantizer 0.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import av
from PIL import Image as Pillow

from copd.domains.digits import MODALITIES, DigitsDomain
from copd.types import ContentPart, Image, Split, Text, Video

SIZES: dict[Split, int] = {"train": 2000, "validation": 128, "test": 512}


def write_picture(path: Path, image: Image) -> None:
    Pillow.fromarray(image.pixels).save(path)


def write_clip(path: Path, video: Video) -> None:
    """Write an MP4 file of RGB pixels without loss."""
    _, height, width, _ = video.frames.shape
    with av.open(path, "w") as container:
        stream = container.add_stream("libx264rgb", rate=int(video.fps), options={"qp": "0"})
        stream.width, stream.height, stream.pix_fmt = width, height, "rgb24"
        for frame in video.frames:
            picture = av.VideoFrame.from_ndarray(frame, format="rgb24")
            container.mux(stream.encode(picture))
        container.mux(stream.encode())


def write_domain(folder: Path, modality: str, sizes: dict[Split, int]) -> None:
    """Write `train.jsonl`, `validation.jsonl` and `test.jsonl` beside their media."""
    (folder / "media").mkdir(parents=True, exist_ok=True)
    domain = DigitsDomain(modality, modality, tuple(MODALITIES[modality]), sizes)
    for split, size in sizes.items():
        with (folder / f"{split}.jsonl").open("w", encoding="utf-8") as file:
            for index in range(size):
                problem = domain.problem(split, index)
                [message] = problem.messages
                stem = f"media/{split}-{index:05d}"
                line = {"images": [], "videos": []}
                parts = [_write_part(folder, stem, part, line) for part in message.content]
                line |= {"prompt": "".join(parts), "answer": problem.answer, "suite": problem.suite}
                file.write(json.dumps({key: value for key, value in line.items() if value}) + "\n")


def _write_part(folder: Path, stem: str, part: ContentPart, line: dict[str, list[str]]) -> str:
    """Write a picture or clip, list it in the line, and return the part's text in the prompt."""
    match part:
        case Text(text):
            return text
        case Image():
            write_picture(folder / f"{stem}.png", part)
            line["images"].append(f"{stem}.png")
            return "<image>"
        case Video():
            write_clip(folder / f"{stem}.mp4", part)
            line["videos"].append(f"{stem}.mp4")
            return "<video>"


def main() -> None:
    parser = argparse.ArgumentParser(description="Write the digits world as files.")
    parser.add_argument("folder", type=Path, help="where to write")
    parser.add_argument("--num-train", type=int, default=SIZES["train"], help="training problems")
    arguments = parser.parse_args()
    for modality in ("image", "video"):
        sizes: dict[Split, int] = {**SIZES, "train": arguments.num_train}
        write_domain(arguments.folder / modality, modality, sizes)


if __name__ == "__main__":
    main()
