"""Videos and shards in an S3 bucket, served by moto on this machine: the same rows and batches as from disk."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from worldline.annotate.video import Span, probe, read_frames
from worldline.datasets.loader import Loader, LoaderConfig
from worldline.datasets.shard_index import select
from worldline.ray_jobs.inputs import content_id, list_inputs, signature

s3fs = pytest.importorskip("s3fs")
moto_server = pytest.importorskip("moto.server")


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A file system with an empty bucket `data`, reached as users reach theirs: by the environment."""
    server = moto_server.ThreadedMotoServer(port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    for name, value in {
        "AWS_ENDPOINT_URL": f"http://{host}:{port}",
        "AWS_ACCESS_KEY_ID": "testing",
        "AWS_SECRET_ACCESS_KEY": "testing",
        "AWS_DEFAULT_REGION": "us-east-1",
    }.items():
        monkeypatch.setenv(name, value)
    s3fs.S3FileSystem.clear_instance_cache()
    files = s3fs.S3FileSystem()
    files.mkdir("data")
    yield files
    files.rm("data", recursive=True)
    server.stop()
    s3fs.S3FileSystem.clear_instance_cache()


def test_videos_in_a_bucket_are_listed_probed_and_decoded(bucket: Any, media: Any, tmp_path: Path) -> None:
    local = media.numbered(tmp_path / "walk.mp4", count=30, fps=30, seed=3)
    bucket.put(str(local), "data/videos/deep/walk.mp4")
    bucket.pipe("data/videos/notes.txt", b"no video")
    (found,) = list_inputs(["s3://data/videos"])
    assert found.rejection is None
    assert found.path == "s3://data/videos/deep/walk.mp4"
    assert content_id(found.path) == content_id(str(local))
    before = signature(found.path)
    info, own = probe(found.path), probe(str(local))
    assert np.array_equal(info.timestamps_s, own.timestamps_s)
    span = Span(start_s=0.2, end_s=0.5)
    pairs = list(zip(read_frames(info, span), read_frames(own, span), strict=True))
    assert len(pairs) == 9
    assert all(np.array_equal(remote.image, here.image) for remote, here in pairs)
    bucket.pipe("data/videos/deep/walk.mp4", b"another file")
    assert signature(found.path) != before
    (missing,) = list_inputs(["s3://data/nothing.mp4"])
    assert missing.rejection is not None or not bucket.exists(missing.path)


def test_a_loader_reads_shards_from_a_bucket_as_from_disk(bucket: Any, shards_made: Path) -> None:
    bucket.put(str(shards_made), "data/shards", recursive=True)
    config = LoaderConfig(global_batch=2)
    batches = []
    for place in (str(shards_made), "s3://data/shards"):
        loader = Loader(select(place), config)
        stream = iter(loader)
        batches.append([[sample["__key__"] for sample in next(stream)] for _ in range(3)])
    assert batches[0] == batches[1]
