"""Untrusted pictures and clips: where they may be, which are refused, how they are decoded."""

import base64
import io
import os
import struct
import zlib
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from PIL import Image as Pillow

from copd.config import parse_files
from copd.domains.digits import MODALITIES, DigitsDomain
from copd.domains.files import open_files
from copd.domains.files.clips import ClipBudget, choose_frames, read_clip
from copd.domains.files.draft import Kind, Media
from copd.domains.files.media import MediaReader
from copd.policy.rendering.render import Renderer, load_renderer
from copd.policy.tiny import resolve
from copd.types import Image, Split, Video
from scripts.make_files_example import write_clip, write_domain, write_picture

BUDGET = ClipBudget(fps=2.0, max_frames=32, max_pixels=10_000)


@pytest.fixture
def reader(tmp_path: Path) -> MediaReader:
    root = tmp_path / "root"
    root.mkdir()
    (tmp_path / "secret.png").write_bytes(png(2, 2))
    return MediaReader(root.resolve(), root.resolve(), 10_000, BUDGET)


@pytest.fixture(scope="module")
def renderer() -> Renderer:
    return load_renderer(resolve("tiny"))


def png(width: int, height: int, mode: str = "RGB", **settings) -> bytes:
    file = io.BytesIO()
    Pillow.new(mode, (width, height), **settings).save(file, "PNG")
    return file.getvalue()


def bomb(width: int, height: int) -> bytes:
    """Return a small PNG file of a huge picture."""

    def chunk(name: bytes, data: bytes) -> bytes:
        body = name + data
        return struct.pack(">I", len(data)) + body + struct.pack(">I", zlib.crc32(body))

    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    pixels = zlib.compress(bytes((width // 8 + 1) * 64), 9)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels)


def clip(count: int = 8, fps: float = 4.0, size: tuple[int, int] = (16, 24)) -> Video:
    """Frame i is of grey i * 16."""
    greys = np.arange(count, dtype=np.uint8)[:, None, None, None] * 16
    return Video(np.broadcast_to(greys, (count, *size, 3)).copy(), fps)


def refusal(reader: MediaReader, source: str | bytes, kind: Kind = "image") -> str:
    with pytest.raises(ValueError) as caught:
        reader.read(Media(kind, source))
    assert "\n" not in str(caught.value)
    return str(caught.value)


# Where files may lie


def test_a_file_must_lie_below_the_root_once_links_are_followed(reader: MediaReader):
    root = reader.root
    (root / "in.png").write_bytes(png(3, 2))
    (root / "out.png").symlink_to(root.parent / "secret.png")
    (root / "folder").symlink_to(root.parent)
    (root / "fine.png").symlink_to(root / "in.png")
    for name in (
        "in.png",
        str(root / "in.png"),
        f"file://{root}/in.png",
        "x/../in.png",
        "fine.png",
    ):
        image = reader.read(Media("image", name))
        assert isinstance(image, Image) and image.pixels.shape == (2, 3, 3)
    for name in ("../secret.png", str(root.parent / "secret.png"), "out.png", "folder/secret.png"):
        assert "lies outside media_root" in refusal(reader, name)


def test_what_is_no_ordinary_file_is_refused(reader: MediaReader):
    os.mkfifo(reader.root / "pipe")
    (reader.root / "loop").symlink_to("loop")
    for name in ("gone.png", "pipe", ".", "loop", "a" * 5000, "in.png/x"):
        assert refusal(reader, name)
    assert "nothing is downloaded" in refusal(reader, "https://example.org/a.png")


# Pictures


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (png(200, 60), "has 200 x 60 pixels, max_pixels allows 10000"),
        (bomb(20_000, 20_000), "max_pixels allows 10000|DecompressionBomb"),
        (bomb(9_000, 9_000), "max_pixels allows 10000"),
        (png(1000, 2), "too long and thin"),
        (png(9, 9, "I;16"), "expected 8 bits per colour"),
        (png(64, 64)[:-40], "cannot be used"),
        (b"", "cannot be used"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "cannot identify image file"),
        (b"<svg/>", "cannot identify image file"),
    ],
    ids=["large", "bomb", "small bomb", "thin", "16 bits", "cut off", "empty", "eps", "svg"],
)
def test_a_picture_that_cannot_be_used_says_why(reader: MediaReader, content: bytes, expected: str):
    text = refusal(reader, content)
    assert any(part in text for part in expected.split("|")), text


def test_every_mode_becomes_upright_rgb(reader: MediaReader):
    grey = reader.read(Media("image", png(2, 1, "L", color=7)))
    assert isinstance(grey, Image) and grey.pixels.tolist() == [[[7] * 3] * 2]
    clear = reader.read(Media("image", png(1, 1, "RGBA", color=(9, 9, 9, 0))))
    assert isinstance(clear, Image) and clear.pixels.tolist() == [[[255] * 3]]
    file, exif = io.BytesIO(), Pillow.Exif()
    exif[0x0112] = 6
    Pillow.new("RGB", (4, 2)).save(file, "PNG", exif=exif)
    turned = reader.read(Media("image", file.getvalue()))
    assert isinstance(turned, Image) and turned.pixels.shape == (4, 2, 3)


def test_bytes_base64_and_data_addresses_are_the_same_picture(tmp_path: Path):
    content = png(24, 24, color=(1, 2, 3))
    text = base64.b64encode(content).decode()
    rows = [
        f'{{"prompt": "{i}", "answer": "1", "image": {source}}}'
        for i, source in enumerate(
            (
                f'"{text}"',
                f'"data:image/png;base64,{text}"',
                '[{"bytes": null, "path": "a.png"}]',
            )
        )
    ]
    (tmp_path / "a.png").write_bytes(content)
    (tmp_path / "a.jsonl").write_text("\n".join(rows))
    settings = ["--test_share", "0", "--validation_share", "0"]
    domain = open_files("a", parse_files(str(tmp_path / "a.jsonl"), settings))
    for index in range(3):
        part = domain.problem("train", index).messages[0].content[0]
        assert isinstance(part, Image) and (part.pixels == [1, 2, 3]).all()
    (tmp_path / "b.jsonl").write_text(
        '{"prompt": "a", "answer": 1, "image": "iVBORw0KGgo%s"}' % ("*" * 80)
    )
    [bad] = open_files("b", parse_files(str(tmp_path / "b.jsonl"))).index.bad
    assert "base64" in bad.reason


# Clips


@pytest.mark.parametrize(
    ("times", "budget", "chosen", "fps"),
    [
        ([0, 0.5, 1, 1.5], (2.0, 32), [0, 1, 2, 3], 2.0),
        ([0, 0.25, 0.5, 0.75, 1, 1.25, 1.5, 1.75], (2.0, 32), [0, 2, 4, 6], 2.0),
        ([10 + i / 10 for i in range(100)], (2.0, 4), [0, 25, 50, 75], 0.4),
        ([0, 0.1, 0.2], (2.0, 32), [0, 1], 20 / 3),
        ([0, 1, 1.1, 2], (1.0, 32), [0, 0, 2], 1.125),
    ],
    ids=["all", "half", "budget", "short", "uneven"],
)
def test_frames_are_chosen_by_rate_and_budget(times, budget, chosen, fps):
    found, rate = choose_frames(times, ClipBudget(budget[0], budget[1], max_pixels=1))
    assert found == chosen and rate == pytest.approx(fps)


def test_a_clip_has_the_rate_colours_and_order_of_its_file(tmp_path: Path):
    video = clip()
    write_clip(tmp_path / "a.mp4", video)
    every = read_clip(tmp_path / "a.mp4", ClipBudget(4.0, 32, 10_000))
    assert np.array_equal(every.frames, video.frames) and every.fps == 4.0
    half = read_clip((tmp_path / "a.mp4").read_bytes(), BUDGET)
    assert np.array_equal(half.frames, video.frames[::2]) and half.fps == 2.0
    small = read_clip(tmp_path / "a.mp4", ClipBudget(4.0, 32, 8 * 8 * 12))
    assert small.frames.shape == (8, 8, 12, 3)


def write(path: Path, video: Video, codec: str, pixels: str, **options: str) -> None:
    """A clip with loss."""
    with av.open(path, "w", options=options) as container:
        stream: Any = container.add_stream(codec, rate=int(video.fps))
        stream.height, stream.width = video.frames.shape[1:3]
        stream.pix_fmt = pixels
        for frame in video.frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())


@pytest.mark.parametrize(("suffix", "codec"), [("webm", "libvpx-vp9"), ("gif", "gif")])
def test_webm_and_gif_are_read_too(tmp_path: Path, suffix: str, codec: str):
    video, path = clip(), tmp_path / f"a.{suffix}"
    write(path, video, codec, "rgb8" if suffix == "gif" else "yuv420p")
    found = read_clip(path, BUDGET)
    assert found.frames.shape == (4, 16, 24, 3) and found.fps == pytest.approx(2.0, rel=0.01)
    greys = found.frames.mean(axis=(1, 2, 3))
    assert greys == pytest.approx([0, 32, 64, 96], abs=12)


def test_clips_that_cannot_be_used_say_why(reader: MediaReader):
    path = reader.root / "a.mp4"
    write_clip(path, clip(64))
    whole = path.read_bytes()
    for size in (0, 10, len(whole) // 2, len(whole) - 100):
        assert "cannot be used" in refusal(reader, whole[:size], "video")
    hurt = bytearray(whole)
    middle = whole.index(b"mdat") + 900
    hurt[middle : middle + 300] = bytes(300)
    assert "cannot be used" in refusal(reader, bytes(hurt), "video")
    write_clip(path, clip(1))
    assert "needs at least 2" in refusal(reader, "a.mp4", "video")
    write_clip(path, clip(2, size=(128, 128)))
    assert "max_pixels allows 10000" in refusal(reader, "a.mp4", "video")
    for playlist in (
        b"ffconcat version 1.0\nfile a.mp4\n",
        b"#EXTM3U\n#EXTINF:1,\nfile:///etc/passwd\n",
    ):
        assert "is not an MP4, WebM or GIF file" in refusal(reader, playlist, "video")


def test_a_cut_off_clip_with_its_index_in_front_is_refused(reader: MediaReader):
    frames = np.random.default_rng(0).integers(0, 256, (32, 16, 24, 3), dtype=np.uint8)
    path = reader.root / "a.mp4"
    write(path, Video(frames, 4.0), "libx264", "yuv420p", movflags="faststart")
    whole = path.read_bytes()
    assert isinstance(reader.read(Media("video", whole)), Video)
    assert "is cut off" in refusal(reader, whole[: len(whole) // 2], "video")


# The digits world, from files


@pytest.fixture(scope="module", params=["image", "video"])
def world(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory):
    """Return a built-in domain, and the same one read from files."""
    modality = request.param
    sizes: dict[Split, int] = {"train": 9, "validation": 6, "test": 12}
    folder = tmp_path_factory.mktemp(modality)
    write_domain(folder, modality, sizes)
    built_in = DigitsDomain(modality, modality, tuple(MODALITIES[modality]), sizes)
    return built_in, open_files(modality, parse_files(str(folder)))


def test_the_digits_world_comes_back_from_files_bit_by_bit(world, renderer: Renderer):
    built_in, from_files = world
    assert from_files.modality == built_in.modality
    assert set(from_files.suites) == set(built_in.suites)
    for split, size in built_in.sizes.items():
        assert from_files.num_problems(split) == size
        for index in range(size):
            mine, theirs = built_in.problem(split, index), from_files.problem(split, index)
            assert (mine.id, mine.suite, mine.answer) == (theirs.id, theirs.suite, theirs.answer)
            expected, found = renderer.render(mine.messages), renderer.render(theirs.messages)
            assert expected.input_ids.tolist() == found.input_ids.tolist()
            assert expected.media.keys() == found.media.keys()
            assert all(expected.media[key].equal(found.media[key]) for key in expected.media)


def test_a_lossy_clip_is_nearly_the_same(tmp_path: Path):
    world = DigitsDomain("video", "video", ("rises",), {"train": 1, "validation": 1, "test": 1})
    part = world.problem("test", 0).messages[0].content[0]
    assert isinstance(part, Video)
    write(tmp_path / "a.mp4", part, "libx264", "yuv420p")
    found = read_clip(tmp_path / "a.mp4", BUDGET)
    assert found.frames.shape == part.frames.shape and found.fps == part.fps
    assert np.abs(found.frames.astype(int) - part.frames).mean() < 4


def test_a_picture_is_written_without_loss(tmp_path: Path):
    pixels = np.arange(48, dtype=np.uint8).reshape(4, 4, 3)
    write_picture(tmp_path / "a.png", Image(pixels))
    assert np.array_equal(np.asarray(Pillow.open(tmp_path / "a.png")), pixels)
