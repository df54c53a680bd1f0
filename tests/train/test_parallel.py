"""Two processes train as one does, and a killed pair's run is finished by one."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from worldline.datasets.transforms import ViewConfig
from worldline.model.camera_embedding import CameraGridConfig
from worldline.model.config import ModelConfig
from worldline.model.patch_autoencoder import PatchAutoencoderConfig
from worldline.train import trainer
from worldline.train.checkpoint import load_state, plain, steps_of
from worldline.train.config import ParallelConfig, TrainConfig
from worldline.train.parallel import ClipShare, Ranks, seeded_generator
from worldline.train.trainer import train

ROOT = Path(__file__).parents[2]
STEPS = 6

SCRIPT = """
import json
import sys
from pathlib import Path
from worldline.train.checkpoint import built
from worldline.train.config import TrainConfig
from worldline.train.trainer import train
train(built(TrainConfig, json.loads(Path(sys.argv[1]).read_text())))
"""


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory, media: Any, posed: Any) -> TrainConfig:
    """A stage on a few small shards, its autoencoder fitted."""
    folder = tmp_path_factory.mktemp("parallel")
    shards = posed.make_shards(posed.numbered_dataset(folder, media, 2), folder / "shards")
    first = TrainConfig(
        shards=str(shards),
        out=folder / "patches",
        kind="autoencoder",
        autoencoder=PatchAutoencoderConfig(latent_channels=4),
        model=ModelConfig(
            width=32,
            num_blocks=2,
            num_heads=2,
            latent_channels=4,
            text_channels=8,
            softmax_every=2,
            camera="ucpe",
            plucker=True,
            camera_grid=CameraGridConfig(time_stride=1),
        ),
        view=ViewConfig(num_frames=3, time_stride=1, stride=4, width=32, height=16, allow_up_to_scale=True),
        steps=2,
        global_batch=4,
        lr=1e-3,
        warmup_steps=2,
        checkpoint_every=2,
        log_every=1,
        ema_decay=None,
        cpu_threads=1,
    )
    train(first)
    return replace(first, kind="flow", init_from=first.out, steps=STEPS, ema_decay=0.9)


def start_pair(config: TrainConfig, folder: Path) -> subprocess.Popen[bytes]:
    """torchrun with two gloo processes."""
    script, settings = folder / "run.py", folder / "config.json"
    script.write_text(SCRIPT)
    settings.write_text(json.dumps(plain(config)))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen([*command, str(script), str(settings)], env=environment, start_new_session=True)


def assert_near(one: Path, other: Path) -> None:
    states = [load_state(path)[1] for path in (one, other)]
    assert states[0]["step"] == states[1]["step"] == STEPS
    assert states[0]["loader"] == states[1]["loader"]
    for part in ("model", "ema"):
        for name, value in states[0][part].items():
            torch.testing.assert_close(value, states[1][part][name], atol=2e-5, rtol=1e-4, msg=name)


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_two_processes_are_one_also_after_a_kill(stage: TrainConfig, tmp_path: Path) -> None:
    alone = replace(stage, out=tmp_path / "alone")
    train(alone)
    # Killed after its first checkpoint, the pair's run is finished by one process: steps of both kinds in one result.
    stopped = replace(stage, out=tmp_path / "stopped", steps=STEPS)
    process = start_pair(stopped, tmp_path)
    deadline_s = time.monotonic() + 120
    while not steps_of(stopped.out):
        assert process.poll() is None
        assert time.monotonic() < deadline_s
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    train(stopped)
    assert_near(alone.out, stopped.out)


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_split_weights_and_clips_go_on_from_one_process_and_back(stage: TrainConfig, tmp_path: Path) -> None:
    # Seven latent frames on two processes: the second one's last frame fills up.
    view = replace(stage.view, num_frames=7, stride=2)
    alone = replace(stage, out=tmp_path / "alone", view=view, accumulation=2)
    train(alone)
    split = replace(
        alone,
        out=tmp_path / "split",
        parallel=ParallelConfig(shard=True, context_ranks=2, checkpoint_blocks=True),
    )
    shutil.copytree(alone.out, split.out)
    for step in (4, 6):
        shutil.rmtree(split.out / "checkpoints" / f"step_{step:08d}")
    process = start_pair(split, tmp_path)
    assert process.wait(timeout=200) == 0
    assert steps_of(split.out) == [2, 4, 6]
    assert_near(alone.out, split.out)
    assert load_state(split.out)[1]["optimizer"] is None
    shutil.rmtree(split.out / "checkpoints" / "step_00000006")
    train(replace(split, parallel=ParallelConfig()))  # from what two processes wrote of their parts
    assert_near(alone.out, split.out)
    optimizers = [load_state(path)[1]["optimizer"]["state"] for path in (alone.out, split.out)]
    for name, moments in optimizers[0].items():
        torch.testing.assert_close(moments["exp_avg"], optimizers[1][name]["exp_avg"], atol=1e-4, rtol=1e-3)
    lines = [json.loads(line) for line in (split.out / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(1, STEPS + 1))  # a step done again has one line
    assert all(line["mfu"] > 0 and line["peak_memory_gib"] > 0 for line in lines)


def test_shares_of_a_clip_are_its_frames_in_order() -> None:
    frames = torch.arange(7.0)[None].expand(2, 7)
    for count in (1, 2, 3, 7):
        shares = [ClipShare(7, place, count) for place in range(count)]
        joined = torch.cat([share.of(frames) for share in shares], dim=1)
        kept = torch.cat([share.mask(torch.ones(2, 7, dtype=torch.bool)) for share in shares], dim=1)
        assert torch.equal(joined[kept].view(2, 7), frames)
        chunks = shares[0].chunks([0, 0, 0, 1, 1, 1, 2])
        assert len(chunks) == joined.shape[1]
        assert all(chunk == 3 for chunk in chunks[7:])


def test_what_one_process_cannot_do_is_refused(stage: TrainConfig, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="2 context ranks do not divide 1 processes"):
        train(replace(stage, out=tmp_path, parallel=ParallelConfig(context_ranks=2)))
    with pytest.raises(ValueError, match="torchrun"):
        train(replace(stage, out=tmp_path, parallel=ParallelConfig(shard=True)))
    with pytest.raises(ValueError, match="only flow stages"):
        replace(stage, kind="autoencoder", ema_decay=None, parallel=ParallelConfig(shard=True))


def test_every_place_of_a_batch_belongs_to_one_process() -> None:
    for world_size in (1, 2, 3, 8):
        places = [place for rank in range(world_size) for place in Ranks(rank, world_size).share(24)]
        assert places == list(range(24))


def test_noise_belongs_to_seed_step_and_place() -> None:
    draws = {
        tuple(torch.randn(4, generator=seeded_generator(seed, step, place)).tolist())
        for seed in (0, 1)
        for step in (0, 1, 2)
        for place in (0, 1, 2)
    }
    assert len(draws) == 18
    again = torch.randn(4, generator=seeded_generator(1, 2, 0))
    assert tuple(again.tolist()) in draws


def test_a_batch_that_does_not_divide_is_refused(
    stage: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trainer, "join_ranks", lambda device, context_size: Ranks(0, 3))
    with pytest.raises(ValueError, match="does not divide into 3 processes"):
        trainer.train(replace(stage, out=tmp_path))
