"""Latents beside shards: what is stored is what encoding on the fly gives, and training takes either."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from worldline.datasets.commit_log import read_unit
from worldline.datasets.compact import compact
from worldline.datasets.latents import encode_clip
from worldline.datasets.loader import Loader, LoaderConfig
from worldline.datasets.schema import OK
from worldline.datasets.shard_format import ShardDir
from worldline.datasets.shard_index import assemble_index, groups, select, write_manifest
from worldline.datasets.transforms import ViewConfig
from worldline.datasets.verify import verify
from worldline.model.autoencoder import AutoencoderConfig, CausalAutoencoder
from worldline.model.camera_embedding import CameraGridConfig
from worldline.model.config import ModelConfig
from worldline.model.patch_autoencoder import PatchAutoencoder, PatchAutoencoderConfig
from worldline.ray_jobs.encode import EncodeJobConfig, EncodeShard, prepare
from worldline.train import trainer
from worldline.train.checkpoint import load_run
from worldline.train.config import TrainConfig
from worldline.train.latent_encoder import LatentEncoder, autoencoder_key
from worldline.train.trainer import train

MODEL = ModelConfig(
    width=32,
    num_blocks=1,
    num_heads=2,
    latent_channels=4,
    text_channels=8,
    softmax_every=0,
    camera="none",
    plucker=False,
    camera_grid=CameraGridConfig(time_stride=1),
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, media: Any, posed: Any) -> Path:
    """Two videos of two scenes in shards of one clip."""
    place = tmp_path_factory.mktemp("encode")
    posed.make_shards(posed.numbered_dataset(place, media, 2), place / "shards")
    return place


def stage(folder: Path, name: str, **more: Any) -> TrainConfig:
    config = TrainConfig(
        shards=str(folder / "shards"),
        out=folder / name,
        kind="autoencoder",
        autoencoder=PatchAutoencoderConfig(latent_channels=4),
        model=MODEL,
        view=ViewConfig(num_frames=3, time_stride=1, stride=4, width=32, height=16, allow_up_to_scale=True),
        steps=3,
        global_batch=2,
        warmup_steps=1,
    )
    return replace(config, **more)


def encoded(folder: Path, run: Path, out: Path) -> ShardDir:
    """What the command does, in this process."""
    job = EncodeJobConfig(shards=folder / "shards", out=out, autoencoder=run, dtype="float32")
    shards, numbers = prepare(job)
    worker = EncodeShard(job, "test")
    for number in numbers:
        done = worker({"shard": number})
        assert done[OK] > 0
        assert not worker({"shard": number})["is_new"]
    for group in groups(shards):
        assemble_index(shards, group)
    write_manifest(shards)
    return shards


def test_training_from_stored_latents_is_training_from_frames(folder: Path, tmp_path: Path) -> None:
    first = stage(folder, "patches")
    train(first)
    shards = encoded(folder, first.out, tmp_path / "latents")
    assert verify(shards.root) == []
    before = {path.name: path.read_bytes() for path in (shards.root / "shards").iterdir()}
    again = encoded(folder, first.out, tmp_path / "again")
    assert {path.name: path.read_bytes() for path in (again.root / "shards").iterdir()} == before

    second = stage(folder, "flow", kind="flow", init_from=first.out)
    cached = replace(second, shards=str(shards.root), out=tmp_path / "cached", cached_latents=True)
    frames, latents = (next(iter(trainer.open_loader(config))) for config in (second, cached))
    assert frames.clip_id == latents.clip_id
    torch.testing.assert_close(frames.first_from_cam, latents.first_from_cam)
    torch.testing.assert_close(frames.fxfycxcy_px, latents.fxfycxcy_px)
    autoencoder = load_run(first.out).autoencoder
    with torch.no_grad():
        expected = autoencoder.encode(trainer.video(frames, "cpu"))
    torch.testing.assert_close(latents.latent, expected, atol=1e-4, rtol=1e-4)
    train(cached)
    train(second)
    one, other = (load_run(config.out).model for config in (cached, second))
    assert one is not None
    assert other is not None
    for a, b in zip(one.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-3)

    # Another autoencoder: neither its folder nor its training mixes with this one.
    torch.manual_seed(1)
    strange = stage(folder, "other", autoencoder=PatchAutoencoderConfig(latent_channels=4, whitening=0.0))
    train(strange)
    with pytest.raises(ValueError, match="another latents"):
        encoded(folder, strange.out, tmp_path / "latents")
    with pytest.raises(ValueError, match="another autoencoder"):
        train(replace(cached, out=tmp_path / "mixed", init_from=strange.out))


@pytest.mark.parametrize("lost", [None, 1])
def test_latents_follow_a_merge_of_their_videos(folder: Path, tmp_path: Path, media, posed, lost) -> None:
    """Four passes of a clip of 22 frames; 60 would go into a shard. What was not encoded before is encoded after."""
    run = stage(folder, f"follow {lost}")
    train(run)
    video = media.numbered(tmp_path / "v.mp4", count=160, fps=30)
    rows = posed.rows_of_video(video, [(k, k + 40) for k in range(0, 160, 40)])
    for count in range(1, 5):
        posed.make_shards(posed.write_table(tmp_path / "dataset", rows[:count]), tmp_path / "shards")
    shards = encoded(tmp_path, run.out, tmp_path / "latents")
    before = latents_of(shards)
    assert len(before) == len(shards.parts()) == 4
    if lost is not None:
        shards.tar(lost).unlink()
        shards.part(lost).unlink()
    assert compact(tmp_path / "shards")["shards"] == 2
    encoded(tmp_path, run.out, tmp_path / "latents")
    compact(tmp_path / "latents")
    assert {part.name for part in shards.parts()} == {"00000004.parquet", "00000005.parquet"}
    assert latents_of(shards) == before
    assert verify(shards.root) == []
    assert compact(tmp_path / "latents") == {"clips": 0, "shards": 0, "bytes": 0}


def latents_of(shards: ShardDir) -> dict[str, bytes]:
    config = LoaderConfig(global_batch=1, epochs=1, members=("json", "latent.npy"))
    samples = Loader(select(shards.root), config).samples()
    return {sample["__key__"]: sample["latent.npy"].tobytes() for sample in samples}


def test_a_broken_clip_is_a_row_and_the_others_are_encoded(folder: Path, tmp_path: Path) -> None:
    run = stage(folder, "fitted")
    train(run)
    copy = tmp_path / "copy"
    shutil.copytree(folder / "shards", copy / "shards")
    number = next(int(part.stem) for part in ShardDir(copy / "shards").parts())
    tar = ShardDir(copy / "shards").tar(number)
    rows = read_unit(ShardDir(copy / "shards").part(number))
    assert rows is not None
    place = rows.to_pylist()[0]
    data = bytearray(tar.read_bytes())
    start = place["mp4_offset"]
    data[start : start + place["mp4_size"]] = bytes(place["mp4_size"])
    tar.write_bytes(data)
    job = EncodeJobConfig(shards=copy / "shards", out=tmp_path / "out", autoencoder=run.out)
    prepare(job)
    done = EncodeShard(job, "test")({"shard": number})
    assert done["ok"] == rows.num_rows - 1
    assert done["rejected"] + done["failed"] == 1

    # A shard that ends in the middle stops the job by name: its clips cannot be told apart.
    tar.write_bytes(data[: start + 100])
    torn = EncodeJobConfig(shards=copy / "shards", out=tmp_path / "torn", autoencoder=run.out)
    prepare(torn)
    stopped = EncodeShard(torn, "test")({"shard": number})["stopped"]
    assert tar.name in stopped
    assert "worldline verify" in stopped


@pytest.mark.parametrize("bent", [False, True])
def test_a_clip_in_pieces_is_the_clip_whole(media: Any, tmp_path: Path, bent: bool) -> None:
    video = media.numbered(tmp_path / "v.mp4", count=140, fps=16, seed=2).read_bytes()
    from worldline.datasets.clip_video import decode_video

    images = decode_video(video, 0, 137, 1)
    height, width = images.shape[1:3]
    row: dict[str, Any] = {
        "num_frames": 140,
        "width": width,
        "height": height,
        "fxfycxcy_px": [100.0, 100.0, width / 2, height / 2] * 140,
        "camera_model": "radial" if bent else "pinhole",
        "distortion": [0.05, 0.0] if bent else [],
    }
    torch.manual_seed(0)
    causal = CausalAutoencoder(AutoencoderConfig(latent_channels=4, channels=(4, 4, 4))).eval()
    columns, latents = encode_clip(row, video, LatentEncoder(causal, device="cpu", dtype="float32"), 32, 16)
    assert latents.shape == (4, 18, 2, 4)
    assert (columns["width"], columns["height"], len(columns["fxfycxcy_px"])) == (32, 16, 560)
    if bent:
        assert not any(columns["distortion"])
        return
    import cv2

    factor = max(32 / width, 16 / height)
    size = max(32, round(width * factor)), max(16, round(height * factor))
    left, top = (size[0] - 32) // 2, (size[1] - 16) // 2
    small = np.stack([cv2.resize(image, size, interpolation=cv2.INTER_AREA) for image in images])
    pixels = torch.from_numpy(small[:, top : top + 16, left : left + 32].copy()).float().div(127.5).sub(1)
    with torch.no_grad():
        whole = causal.encode(pixels.permute(3, 0, 1, 2)[None])[0].numpy()
    np.testing.assert_allclose(latents, whole, atol=1e-5)


def test_the_key_changes_with_any_weight() -> None:
    one, other = PatchAutoencoder(), PatchAutoencoder()
    assert autoencoder_key(one) == autoencoder_key(other)
    other.mean[3] += 1e-3
    assert autoencoder_key(one) != autoencoder_key(other)
