"""Videos of our own runs: windows, long paths, chunk-causal streams, and the command."""

from __future__ import annotations

import dataclasses
import itertools
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import av
import cv2
import numpy as np
import pytest
import torch

from worldline.annotate.camera import Intrinsics, compose, invert
from worldline.datasets.transforms import ViewConfig
from worldline.model.autoencoder import to_pixels
from worldline.model.camera_embedding import CameraGridConfig
from worldline.model.chunks import chunk_causal
from worldline.model.config import ModelConfig
from worldline.model.patch_autoencoder import PatchAutoencoder, PatchAutoencoderConfig
from worldline.model.refiner import STREAM_SPAN, beginning, refine
from worldline.model.rope import Grid
from worldline.model.sampler import REFINER_SIGMAS, sample_euler
from worldline.model.text import ByteText
from worldline.model.world_model import WorldModel, conditions
from worldline.train.actions import ActionConfig, poses_of_actions
from worldline.train.checkpoint import load_run, plain, save
from worldline.train.config import RefineConfig, TrainConfig
from worldline.train.generate import GenerateConfig, _keys, main, write_video
from worldline.train.generate_run import RunBackend, RunGenerator
from worldline.train.overlay import with_control
from worldline.train.parallel import seeded_generator
from worldline.train.refine_run import RunRefiner

torch.set_num_threads(1)
LENS = Intrinsics(fxfycxcy_px=np.array([24.0, 24.0, 16.0, 8.0]), width=32, height=16)
PATH = poses_of_actions("w-4,d-6", ActionConfig(step_m=0.3, turn_deg=8.0, ease_frames=0))  # 11 poses
IMAGE = np.random.default_rng(0).integers(0, 256, (16, 32, 3), dtype=np.uint8)


def saved_run(
    folder: Path, chunks: tuple[int, int] | None = None, kind: str = "flow", *, patches: int = 3
) -> Path:
    """A run of random weights, none of them zero, so that cameras and noise matter; `patches`: frames that the
    autoencoder is fitted to."""
    config = TrainConfig(
        shards="none",
        out=folder,
        init_from=folder,
        kind=kind,
        refine=RefineConfig(lora_rank=0),
        model=ModelConfig(
            width=32,
            num_blocks=2,
            num_heads=2,
            latent_channels=8,
            text_channels=8,
            softmax_every=2,
            camera="ucpe",
            plucker=True,
            camera_grid=CameraGridConfig(time_stride=1),
        ),
        autoencoder=PatchAutoencoderConfig(patch=8, latent_channels=8),
        view=ViewConfig(num_frames=5, time_stride=1, stride=2, width=32, height=16),
        chunks=chunks,
    )
    torch.manual_seed(3)
    model, autoencoder = WorldModel(config.model), PatchAutoencoder(PatchAutoencoderConfig(latent_channels=8))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    autoencoder.fit(2 * torch.rand(2, 3, patches, 16, 32) - 1)
    weights = {"model": model.state_dict(), "ema": None, "autoencoder": autoencoder.state_dict()}
    save(folder, 1, weights | {"step": 1, "config": plain(config)})
    return folder


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved_run(tmp_path_factory.mktemp("run"))


def test_a_window_begins_with_its_frame_and_reads_camera_and_seed(run: Path) -> None:
    generator = RunGenerator(load_run(run))
    paths = np.stack([PATH[:5], np.tile(np.eye(3, 4), (5, 1, 1))])
    made = generator.videos(np.stack([IMAGE, IMAGE]), paths, LENS, steps=3)
    assert made.shape == (2, 5, 16, 32, 3)
    video = torch.from_numpy(IMAGE.copy()).float().div(127.5).sub(1).permute(2, 0, 1)[None, :, None]
    kept = generator.autoencoder.decode(generator.autoencoder.encode(video)).clamp(-1, 1)
    expected = ((kept + 1) * 127.5).round().byte().permute(0, 2, 3, 4, 1).numpy()[0, 0]
    assert np.abs(made[:, 0].astype(int) - expected).max() <= 1
    np.testing.assert_array_equal(made[0], generator.videos(IMAGE[None], paths[:1], LENS, steps=3)[0])
    other_seed = generator.videos(IMAGE[None], paths[:1], LENS, steps=3, seed=1)[0]
    assert (other_seed[1:] != made[0, 1:]).mean() > 0.5
    # The same noise would give the same video if the camera were not read.
    still = generator.videos(IMAGE[None], paths[1:], LENS, steps=3)[0]
    assert (still[1:] != made[0, 1:]).mean() > 0.1


def test_a_long_path_goes_on_from_the_last_frame(run: Path) -> None:
    generator = RunGenerator(load_run(run))
    frames = np.stack(list(generator.stream(IMAGE, PATH, LENS, steps=2)))
    assert len(frames) == len(PATH)
    np.testing.assert_array_equal(frames[:5], generator.videos(IMAGE[None], PATH[None, :5], LENS, steps=2)[0])
    onwards = compose(invert(PATH[4:5]), PATH[4:9])
    second = generator.videos(frames[4][None], onwards[None], LENS, steps=2, start=4)[0]
    np.testing.assert_array_equal(frames[5:9], second[1:])
    assert len(list(generator.stream(IMAGE, PATH[:1], LENS, steps=2))) == 1


def test_a_chunk_causal_stream_does_not_know_the_future(tmp_path: Path) -> None:
    generator = RunGenerator(load_run(saved_run(tmp_path / "run", chunks=(2, 3))))
    frames = np.stack(list(generator.stream(IMAGE, PATH, LENS, steps=2)))
    assert len(frames) == len(PATH)
    changed = PATH.copy()
    changed[5:, :, 3] += 1.0
    again = np.stack(list(generator.stream(IMAGE, changed, LENS, steps=2)))
    np.testing.assert_array_equal(again[:5], frames[:5])
    assert (again[5:] != frames[5:]).any()
    with pytest.raises(ValueError, match="guidance"):
        next(generator.stream(IMAGE, PATH, LENS, guidance=2.0))


def test_staggered_chunks_do_not_know_the_future_and_are_not_the_stream(tmp_path: Path) -> None:
    run = load_run(saved_run(tmp_path / "run", chunks=(2, 3)))
    generator = RunGenerator(run, staggered=True)
    made = generator.videos(IMAGE[None], PATH[None, :5], LENS, steps=3)[0]
    bent = PATH[:5].copy()
    bent[2:, 0, 3] += 0.4
    other = generator.videos(IMAGE[None], bent[None], LENS, steps=3)[0]
    np.testing.assert_array_equal(made[:2], other[:2])
    assert not np.array_equal(made[2:], other[2:])
    frames = list(generator.stream(IMAGE, PATH, LENS, steps=3))
    assert len(frames) == len(PATH)
    np.testing.assert_array_equal(np.stack(frames[:5]), made)
    assert not np.array_equal(made, np.stack(list(RunGenerator(run).stream(IMAGE, PATH[:5], LENS, steps=3))))
    with pytest.raises(ValueError, match="nothing to stagger"):
        RunGenerator(load_run(saved_run(tmp_path / "whole")), staggered=True)


@pytest.mark.parametrize("chunks", [None, (2, 3), (1, 2)])
def test_a_path_made_while_driving_gives_the_frames_of_the_known_path(
    tmp_path: Path, chunks: tuple[int, int] | None
) -> None:
    generator = RunGenerator(load_run(saved_run(tmp_path / "run", chunks=chunks)))
    known = np.stack(list(generator.stream(IMAGE, PATH, LENS, steps=2)))
    asked: list[int] = []

    def next_poses(count: int) -> list[np.ndarray]:
        place = sum(asked)
        asked.append(count)
        return list(PATH[place : place + count])

    pieces = []
    for piece in generator.stream_live(IMAGE, LENS, next_poses, steps=2):
        pieces.append(piece)
        assert len(asked) == len(pieces)  # nothing is asked for before it is needed
    np.testing.assert_array_equal(np.concatenate(pieces), known)
    expected = {None: [5, 4, 4], (2, 3): [2, 3, 3, 3], (1, 2): [1, 2, 2, 2, 2, 2]}[chunks]
    assert asked[: len(pieces)] == expected


def test_the_command_writes_video_poses_and_record(run: Path, tmp_path: Path) -> None:
    image = tmp_path / "first.png"
    with av.open(str(image), "w", format="image2") as container:
        stream = container.add_stream("png", rate=1)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "rgb24"
        container.mux(stream.encode(av.VideoFrame.from_ndarray(np.full((48, 64, 3), 90, np.uint8), "rgb24")))
        container.mux(stream.encode())
    config = GenerateConfig(
        image=image,
        out=tmp_path / "made.mp4",
        run=run,
        action="w-12,a-8",
        fov_deg=70.0,
        steps=1,
        overlay=True,
    )
    assert main(config) == 0
    poses = np.load(tmp_path / "made.npy")
    np.testing.assert_allclose(poses, poses_of_actions("w-12,a-8")[::2])
    record = json.loads((tmp_path / "made.json").read_text())
    assert (record["backend"], record["fps"], record["num_frames"]) == ("run", 8.0, 11)
    assert record["how"].startswith("windows of 5 frames")
    with av.open(str(config.out)) as container:
        stream = container.streams.video[0]
        assert (stream.average_rate, stream.height) == (8, 240)
        assert sum(1 for _ in container.decode(stream)) == 11
    assert main(replace(config, run=tmp_path)) == 2
    assert not (tmp_path / "made.partial.mp4").exists()


def test_a_run_makes_the_whole_path_unless_told_otherwise(run: Path) -> None:
    backend = RunBackend(str(run), device="cpu", dtype="float32")
    path = poses_of_actions("w-400")
    config = GenerateConfig(
        image=Path("i.png"), out=Path("o.mp4"), run=run, action="w-400", fov_deg=70, steps=1
    )
    made = backend(config, IMAGE, path, LENS.fxfycxcy_px)
    np.testing.assert_array_equal(made.world_from_cam, path[::2])
    assert sum(1 for _ in made.frames) == 201
    assert len(backend(replace(config, num_frames=7), IMAGE, path, LENS.fxfycxcy_px).world_from_cam) == 7
    keys = _keys(replace(config, action="w-4,a-6"), 4, 2)
    assert keys == ["w", "w", "a", "a"]  # poses 0, 2, 4, 6, however many of them are made


def test_noise_of_a_seed_is_not_that_of_its_neighbour_further_on(run: Path) -> None:
    generator = RunGenerator(load_run(run))
    one = generator.videos(IMAGE[None], PATH[None, :5], LENS, steps=1, seed=3, start=0)
    other = generator.videos(IMAGE[None], PATH[None, :5], LENS, steps=1, seed=0, start=3)
    assert (one[0, 1:] != other[0, 1:]).mean() > 0.5


@pytest.mark.parametrize("chunks", [None, (2, 3)])
def test_mixed_precision_stays_inside_the_generator(tmp_path: Path, chunks: tuple[int, int] | None) -> None:
    run = load_run(saved_run(tmp_path / "run", chunks=chunks))
    exact = np.stack(list(RunGenerator(run).stream(IMAGE, PATH, LENS, steps=1))).astype(int)
    half = []
    for frame in RunGenerator(run, dtype="bfloat16").stream(IMAGE, PATH, LENS, steps=1):
        assert not torch.is_autocast_enabled("cpu")
        half.append(frame)
    difference = np.abs(np.stack(half).astype(int)[1:5] - exact[1:5])
    assert 0 < difference.mean() < 10


def test_ctrl_c_leaves_what_was_made(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def three_frames(self: RunGenerator, *inputs: object, **options: object) -> Iterator[np.ndarray]:
        yield from [IMAGE] * 3
        raise KeyboardInterrupt

    monkeypatch.setattr(RunGenerator, "stream", three_frames)
    image = tmp_path / "first.png"
    cv2.imwrite(str(image), IMAGE)
    out = tmp_path / "made.mp4"
    assert main(GenerateConfig(image=image, out=out, run=run, action="w-9", fov_deg=70)) == 130
    assert "made.partial.mp4" in caplog.text
    assert not out.exists()
    with av.open(str(tmp_path / "made.partial.mp4")) as container:
        assert sum(1 for _ in container.decode(video=0)) == 3


def test_overlay_marks_the_path_so_far_and_leaves_the_rest() -> None:
    frames = np.full((3, 240, 320, 3), 100, np.uint8)
    path = np.tile(np.eye(3, 4), (3, 1, 1))
    path[:, 2, 3] = [0.0, 1.0, 2.0]
    drawn = np.stack(list(with_control(frames, path, ["w", "w", ""])))
    bright = (drawn[:, :60, :60, 0] > 200).sum(axis=(1, 2))
    assert bright[0] < bright[1] < bright[2]
    np.testing.assert_array_equal(drawn[:, :200, 80:], frames[:, :200, 80:])
    with pytest.raises(ValueError, match="no frame"):
        write_video(Path("never.mp4"), iter([]), fps=8)


def test_a_refiner_goes_over_each_window_and_keeps_its_first_frame(tmp_path: Path) -> None:
    run, refiner = (
        load_run(saved_run(tmp_path / "run")),
        load_run(saved_run(tmp_path / "r", (1, 2), "refiner")),
    )
    plain_frames, refined = (
        np.stack(list(RunGenerator(run, refiner=r).stream(IMAGE, PATH[::2], LENS, steps=2, seed=1)))
        for r in (None, refiner)
    )
    assert refined.shape == plain_frames.shape
    assert np.array_equal(refined[0], plain_frames[0])
    assert (refined[1:] != plain_frames[1:]).any(axis=(1, 2, 3)).all()
    # By hand: the window's latents, refined.
    generator = RunGenerator(run)
    kept: list[torch.Tensor] = []
    decode = generator.autoencoder.decode
    generator.autoencoder.decode = lambda z: kept.append(z) or decode(z)  # type: ignore[method-assign]
    generator.videos(IMAGE[None], PATH[None, :5], LENS, steps=2, seed=1)
    generator.autoencoder.decode = decode  # type: ignore[method-assign]
    low = kept[0]
    noise = torch.randn(low.shape, generator=seeded_generator(1, 0, 1))
    poses = torch.as_tensor(PATH[None, :5], dtype=torch.float32)
    grid = Grid(num_frames=5, height=low.shape[3], width=low.shape[4])
    cameras = conditions(run.model.config, poses, LENS, grid)
    text, mask = ByteText(channels=8)([""])
    wanted = refine(refiner.model, low, noise, low[:, :, :1], text, mask, cameras, chunks=[0, 1, 1, 2, 2])
    found = RunGenerator(run, refiner=refiner).videos(IMAGE[None], PATH[None, :5], LENS, steps=2, seed=1)
    assert np.array_equal(found, to_pixels(decode(wanted)))


@pytest.mark.parametrize("chunks", [(1, 2), (2, 3)])
def test_a_stream_is_refined_block_by_block_and_equals_masked_whole_passes(
    tmp_path: Path, chunks: tuple[int, int]
) -> None:
    """By hand: the stream's own latents; then for each block of three a pass over the whole clip so far, in which the
    frames before it are done and clean and the mask lets it read the first one and the eleven before it."""
    run = load_run(saved_run(tmp_path / "run", chunks))
    made = RunRefiner(
        load_run(saved_run(tmp_path / "r", (1, 3), "refiner")), run.autoencoder, device="cpu", streams=True
    )
    assert made.model.config.span == STREAM_SPAN
    path = poses_of_actions(
        "w-9,d-12,a-10", ActionConfig(step_m=0.1, turn_deg=3.0, ease_frames=0)
    )  # 32 poses
    kept: list[torch.Tensor] = []
    generator = RunGenerator(run)
    decode = generator.autoencoder.decode
    generator.autoencoder.decode = lambda z: kept.append(z) or decode(z)  # type: ignore[method-assign]
    unrefined = np.stack(list(generator.stream(IMAGE, path, LENS, steps=2, seed=1)))
    generator.autoencoder.decode = decode  # type: ignore[method-assign]
    low = torch.cat(kept, dim=2)
    text, mask = ByteText(channels=8)([""])
    wanted = low[:, :, :1]
    for begin in range(1, low.shape[2], 3):
        block = low[:, :, begin : begin + 3]
        end = begin + block.shape[2]
        noise = torch.randn(block.shape, generator=seeded_generator(1, begin, 1))
        poses = torch.as_tensor(np.concatenate([path, path[-1:]])[None, :end], dtype=torch.float32)
        grid = Grid(num_frames=end, height=low.shape[3], width=low.shape[4])
        cameras = conditions(made.model.config, poses, LENS, grid)
        spans = chunk_causal(end, first=1, rest=3)
        table = torch.tensor(REFINER_SIGMAS, dtype=torch.float64)[:, None].repeat(1, end)
        table[:, :begin] = 0

        def velocity(x, sigmas, cameras=cameras, spans=spans):
            return made.model(x, 1000 * sigmas, text, mask, cameras, chunks=spans)

        with torch.no_grad():
            x = torch.cat([wanted, beginning(block, noise)], dim=2)
            wanted = torch.cat([wanted, sample_euler(velocity, x, table)[:, :, begin:]], dim=2)
    refiner = load_run(saved_run(tmp_path / "r", (1, 3), "refiner"))
    generator = RunGenerator(run, refiner=refiner)
    kept.clear()
    generator.autoencoder.decode = lambda z: kept.append(z) or decode(z)  # type: ignore[method-assign]
    refined = np.stack(list(generator.stream(IMAGE, path, LENS, steps=2, seed=1)))
    generator.autoencoder.decode = decode  # type: ignore[method-assign]
    torch.testing.assert_close(torch.cat(kept, dim=2), wanted, rtol=1e-5, atol=1e-5)
    assert [z.shape[2] for z in kept[:3]] == [1, 3, 3]
    assert refined.shape == unrefined.shape == (32, 16, 32, 3)
    assert np.array_equal(refined[0], unrefined[0])
    assert (refined[1:] != unrefined[1:]).any(axis=(1, 2, 3)).all()
    # Live, the path is asked for a chunk at a time, and nothing but the wait for a block's frames is added.
    poses = iter(path)
    live = generator.stream_live(IMAGE, LENS, lambda n: list(itertools.islice(poses, n)), steps=2, seed=1)
    first = [next(live), next(live)]
    assert np.array_equal(np.concatenate(first), refined[:4])
    assert sum(1 for _ in poses) >= 32 - 7
    live.close()


def test_a_refined_stream_carries_a_state_that_does_not_grow(tmp_path: Path) -> None:
    run = load_run(saved_run(tmp_path / "run", (1, 2)))
    generator = RunGenerator(run, refiner=load_run(saved_run(tmp_path / "r", (1, 3), "refiner")))
    assert generator.refiner is not None
    sizes: list[int] = []
    stream = generator.refiner.model.stream

    def spy(*given):
        velocity, state = stream(*given)
        if not given[1].any():
            sizes.append(_num_values(state))
        return velocity, state

    generator.refiner.model.stream = spy  # type: ignore[method-assign]
    path = np.tile(np.eye(3, 4), (90, 1, 1))
    path[:, 2, 3] = 0.02 * np.arange(90)
    assert sum(1 for _ in generator.stream(IMAGE, path, LENS, steps=1)) == 90
    assert len(sizes) == 31  # the first frame, 29 blocks of three, two frames more
    assert len(set(sizes[4:])) == 1  # the window is full
    assert sizes[0] < sizes[4]


def _num_values(part: object) -> int:
    """Of all tensors in a state."""
    if isinstance(part, torch.Tensor):
        return part.numel()
    if dataclasses.is_dataclass(part):
        return sum(_num_values(getattr(part, field.name)) for field in dataclasses.fields(part))
    return sum(map(_num_values, part)) if isinstance(part, tuple | list) else 0


def test_runs_that_do_not_fit_are_named(tmp_path: Path) -> None:
    run, streams = saved_run(tmp_path / "run"), saved_run(tmp_path / "s", (1, 2))
    refiner = load_run(saved_run(tmp_path / "r", (1, 2), "refiner"))
    with pytest.raises(ValueError, match="refiner stage: it makes no videos by itself"):
        RunGenerator(refiner)
    with pytest.raises(ValueError, match="no run of the refiner stage"):
        RunGenerator(load_run(run), refiner=load_run(streams))
    other = saved_run(tmp_path / "other", patches=4)
    with pytest.raises(ValueError, match="another autoencoder"):
        RunGenerator(load_run(other), refiner=refiner)


@pytest.mark.parametrize("dtype", ["fp8", "nvfp4"])
def test_quantised_runs_make_nearly_the_same_video(tmp_path: Path, dtype: str) -> None:
    run = saved_run(tmp_path / "run")
    videos = [
        RunGenerator(load_run(run), dtype=kind).videos(IMAGE[None], PATH[None, :5], LENS, steps=2)
        for kind in ("float32", dtype)
    ]
    difference = np.abs(videos[0].astype(int) - videos[1])
    assert difference.max() > 0
    assert difference.mean() < 12
