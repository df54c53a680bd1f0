"""The loader: equal global batches for any ranks and workers, resuming, filtering, damage, remote shards."""

from __future__ import annotations

import dataclasses
import functools
import gc
import http.server
import itertools
import json
import os
import pickle
import shutil
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import fsspec
import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import webdataset
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from worldline.datasets.buffer_pool import BufferPool
from worldline.datasets.byte_ranges import ByteRange, RangeReader
from worldline.datasets.loader import Loader, LoaderConfig
from worldline.datasets.member_content import array_view
from worldline.datasets.sample_order import OrderConfig, SampleOrder
from worldline.datasets.schema import ClipRejected
from worldline.datasets.shard_format import (
    TAR_END,
    ShardDir,
    describe_member,
    json_bytes,
    place_columns,
    tar_member,
)
from worldline.datasets.shard_index import RECORD, Selection, select, selection_of


def _id(number: int) -> str:
    return f"{number:08x}-0000-4000-8000-000000000000"


def ragged_shards(root: Path, sizes: list[int], latent_values: int = 3) -> Selection:
    """Tars of unequal length with tiny members, and their selection."""
    records = []
    number = 0
    for shard, count in enumerate(sizes):
        path = ShardDir(root).tar(shard)
        path.parent.mkdir(parents=True, exist_ok=True)
        content = b""
        for _ in range(count):
            latent = np.full(latent_values, number, dtype=np.float32)
            members = []
            for name, data in (
                (f"{_id(number)}.json", json_bytes({"clip_id": _id(number), "number": number})),
                (f"{_id(number)}.latent.npy", npy(latent)),
            ):
                members.append(describe_member(name, len(content) + 512, data))
                content += tar_member(name, data)
            place = place_columns(members, path.name)
            record = np.zeros((), RECORD)
            record["clip_id"], record["shard"] = _id(number), shard
            for key in RECORD.names or ():
                if key in place and key != "shard":
                    record[key] = place[key]
            records.append(record)
            number += 1
        path.write_bytes(content + TAR_END)
    return selection_of(str(root), np.array(records, dtype=RECORD))


def npy(array: np.ndarray) -> bytes:
    import io

    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


@pytest.fixture(scope="module")
def ragged(tmp_path_factory: pytest.TempPathFactory) -> Selection:
    return ragged_shards(tmp_path_factory.mktemp("ragged"), [5, 1, 9, 2, 20])


def config(**more) -> LoaderConfig:
    return LoaderConfig(
        **{"global_batch": 12, "members": ("json", "latent.npy"), "max_replaced_share": 1.0} | more
    )


def take(loader: Loader, num_batches: int) -> list[list[bytes]]:
    """Each sample of the next batches, as bytes: everything it holds."""
    batches = []
    if num_batches == 0:
        return []
    for batch in loader:
        batches.append([pickle.dumps(sample) for sample in batch])
        if len(batches) == num_batches:
            break
    return batches


def global_batches(
    selection: Selection, num_batches: int, state: dict | None = None, *, world_size: int, **more
):
    """The batches of all ranks put together, and a rank's state after them."""
    parts, states = [], []
    for rank in range(world_size):
        loader = Loader(selection, config(rank=rank, world_size=world_size, **more))
        if state is not None:
            loader.load_state_dict(state)
        parts.append(take(loader, num_batches))
        states.append(loader.state_dict())
    assert all(s == states[0] for s in states)
    return [[sample for part in parts for sample in part[k]] for k in range(num_batches)], states[0]


weights_of = st.one_of(
    st.none(), st.lists(st.sampled_from([0.0, 0.5, 1.0, 3.0]), min_size=37, max_size=37).filter(any)
)


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(st.integers(1, 12), min_size=2, max_size=3),
    st.integers(0, 3),
    st.integers(12, 17),
    weights_of,
    st.builds(OrderConfig, seed=st.integers(0, 9), window=st.sampled_from([0, 4])),
)
def test_any_ranks_see_the_same_batches(ragged, worlds, cut, global_batch, weights, order) -> None:
    """World after world goes on from the last one's state; the whole equals one uninterrupted rank's run."""
    selection = ragged
    if weights is not None:
        selection = selection_of(ragged.location, ragged.records, np.array(weights))
    more = {"global_batch": global_batch, "order": order}
    expected, _ = global_batches(selection, cut * len(worlds), world_size=1, **more)
    found, state = [], None
    for world_size in worlds:
        batches, state = global_batches(selection, cut, state, world_size=world_size, **more)
        found += batches
    assert found == expected
    # The oracle for what they hold is the order itself.
    ids = [pickle.loads(sample)["json"]["number"] for batch in found for sample in batch]
    places = np.arange(len(ids))
    assert ids == SampleOrder(37, order, selection.cumulative_weight).samples(places).tolist()


@pytest.mark.parametrize(("workers", "world_size"), [(1, 1), (2, 5), (3, 2), (4, 1)])
def test_workers_change_nothing(ragged, workers, world_size) -> None:
    expected, state = global_batches(ragged, 7, world_size=1)
    found, other = global_batches(ragged, 7, world_size=world_size, num_workers=workers)
    assert found == expected
    assert other == state
    more, _ = global_batches(ragged, 9, world_size=1)
    resumed, _ = global_batches(ragged, 2, state, world_size=world_size, num_workers=workers)
    assert resumed == more[7:]


def test_an_epoch_holds_every_sample_once_whatever_the_batch(ragged) -> None:
    for world_size in (1, 4, 7):
        batches = [
            list(Loader(ragged, config(rank=r, world_size=world_size, epochs=2))) for r in range(world_size)
        ]
        steps = max(len(part) for part in batches)
        assert steps == -(-2 * 37 // 12)
        numbers = sorted(s["json"]["number"] for part in batches for batch in part for s in batch)
        assert numbers == sorted(2 * list(range(37)))


def test_resuming_at_step_a_million_costs_nothing(ragged) -> None:
    loader = Loader(ragged, config())
    state = loader.state_dict() | {"position": 12 * 10**6}
    begun = time.process_time()
    loader.load_state_dict(state)
    batch = next(iter(loader))
    # Not a speed test: reading a million steps away would take minutes.
    assert time.process_time() - begun < 5
    expected = SampleOrder(37, OrderConfig()).samples(np.arange(12 * 10**6, 12 * 10**6 + 12))
    assert [s["json"]["number"] for s in batch] == expected.tolist()
    assert loader.state_dict()["step"] == 10**6 + 1


def test_a_state_of_other_data_or_order_is_refused(ragged) -> None:
    state = Loader(ragged, config()).state_dict()
    fewer = selection_of(ragged.location, ragged.records[:-1])
    weighted = selection_of(ragged.location, ragged.records, np.ones(37))
    for selection, order, word in (
        (fewer, OrderConfig(), "fingerprint"),
        (weighted, OrderConfig(), "fingerprint"),
        (ragged, OrderConfig(seed=1), "order"),
        (ragged, OrderConfig(window=3), "order"),
    ):
        with pytest.raises(ValueError, match=word):
            Loader(selection, config(order=order)).load_state_dict(state)
    json.dumps(state)  # It goes into any checkpoint.


def test_random_things_about_a_sample_follow_its_position(ragged) -> None:
    seeds = [s["__seed__"] for batch in take_samples(ragged, 5) for s in batch]
    again = [s["__seed__"] for batch in take_samples(ragged, 5, num_workers=2) for s in batch]
    assert seeds == again
    assert len(set(seeds)) == len(seeds)


def take_samples(selection, count, **more):
    return [[pickle.loads(s) for s in batch] for batch in take(Loader(selection, config(**more)), count)]


def test_it_is_a_webdataset_pipeline_and_maps(ragged) -> None:
    loader = Loader(ragged, config()).map(lambda s: s["json"]["number"]).map(lambda n: 10 * n)
    pipeline = webdataset.DataPipeline(loader.samples, webdataset.map(lambda n: n + 1))
    found = list(itertools.islice(pipeline, 12))
    order = SampleOrder(37, OrderConfig()).samples(np.arange(12))
    assert found == (10 * order + 1).tolist()


def test_collate_gives_tensors(ragged) -> None:
    def stack(samples: list) -> torch.Tensor:
        return torch.stack([torch.from_numpy(s["latent.npy"]) for s in samples])

    batch = next(iter(Loader(ragged, config(num_workers=1), stack)))
    assert batch.shape == (12, 3)
    assert batch[:, 0].tolist() == SampleOrder(37, OrderConfig()).samples(np.arange(12)).tolist()


# Damage


def broken(tmp_path: Path, ragged: Selection) -> Path:
    root = tmp_path / "broken"
    shutil.copytree(ragged.location, root)
    return root


def run_damaged(root: Path, ragged: Selection, tmp_path: Path, **more):
    selection = dataclasses.replace(ragged, location=str(root))
    quarantine = tmp_path / "quarantine"
    shutil.rmtree(quarantine, ignore_errors=True)
    samples = [s for batch in take_samples(selection, 6, quarantine_dir=quarantine, **more) for s in batch]
    lines = [json.loads(x) for f in sorted(quarantine.glob("*")) for x in f.read_text().splitlines()]
    # Workers read ahead of what was taken, and record what they meet there.
    lines = [line for line in lines if line["position"] < 72]
    return samples, sorted(lines, key=lambda line: (line["position"], line["clip_id"]))


@pytest.mark.parametrize("map_files", [False, True])
@pytest.mark.parametrize("damage", ["missing", "empty", "torn", "flipped", "other member"])
def test_a_broken_sample_is_recorded_and_replaced_by_the_rule(tmp_path, ragged, damage, map_files) -> None:
    root = broken(tmp_path, ragged)
    path = ShardDir(root).tar(2)  # samples 6 ... 14
    data = bytearray(path.read_bytes())
    bad = set(range(6, 15))
    if damage == "missing":
        path.unlink()
    elif damage == "empty":
        path.write_bytes(b"")
    elif damage == "torn":
        path.write_bytes(data[: len(data) // 2])
        ends = ragged.records["latent.npy_offset"] + ragged.records["latent.npy_size"]
        bad = {n for n in bad if ends[n] > len(data) // 2}
    else:
        at = int(ragged.records[8]["latent.npy_offset"]) + 130
        data[at] ^= 64
        if damage == "other member":  # A wrong index: everything shifted by one block.
            data[512:512] = bytes(512)
        else:
            bad = {8}
        path.write_bytes(data)
    samples, lines = run_damaged(root, ragged, tmp_path, map_files=map_files)
    order = SampleOrder(37, OrderConfig())
    planned = order.samples(np.arange(72)).tolist()
    assert {line["position"] for line in lines} == {p for p, n in enumerate(planned) if n in bad}
    for position, (sample, number) in enumerate(zip(samples, planned, strict=True)):
        if number in bad:
            attempt = 1
            while (stand_in := order.replacement(position, attempt)) in bad:
                attempt += 1
            assert sample["json"]["number"] == stand_in
            assert sample["__replaces__"][0] == _id(number)
            assert len(sample["__replaces__"]) == attempt
        else:
            assert sample["json"]["number"] == number
            assert "__replaces__" not in sample
    # The same on other workers: damage does not spoil exactness.
    again, other_lines = run_damaged(root, ragged, tmp_path, num_workers=2, map_files=map_files)
    assert [pickle.dumps(s) for s in again] == [pickle.dumps(s) for s in samples]
    assert other_lines == lines


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Selection:
    """Samples of 320 KB: large enough for threads to read ahead."""
    return ragged_shards(tmp_path_factory.mktemp("large"), [5, 1, 3], latent_values=80_000)


@pytest.mark.parametrize("read_ahead", [1, 2, 4, 7])
def test_reading_ahead_changes_nothing(large, read_ahead) -> None:
    expected = take(Loader(large, config(read_ahead=0)), 6)
    assert take(Loader(large, config(read_ahead=read_ahead)), 6) == expected
    assert take(Loader(large, config(read_ahead=read_ahead, num_workers=2)), 6) == expected
    short = config(read_ahead=read_ahead, epochs=1)
    assert [len(batch) for batch in Loader(large, dataclasses.replace(short, global_batch=4))] == [4, 4, 1]
    numbers = [s["json"]["number"] for s in Loader(large, short).samples()]
    assert numbers == SampleOrder(9, OrderConfig()).samples(np.arange(9)).tolist()


@pytest.mark.parametrize("map_files", [False, True])
@pytest.mark.parametrize("read_ahead", [0, 4])
def test_any_flipped_bit_is_found_before_the_sample_is_handed_out(
    tmp_path, large, read_ahead, map_files
) -> None:
    reading = config(epochs=1, read_ahead=read_ahead, map_files=map_files)
    root = broken(tmp_path, large)
    selection = dataclasses.replace(large, location=str(root))
    path = ShardDir(root).tar(0)
    whole = path.read_bytes()
    record = large.records[2]
    first, size = int(record["latent.npy_offset"]), int(record["latent.npy_size"])
    for at, bit in ((first, 0), (first + 127, 3), (first + size // 2, 7), (first + size - 1, 5)):
        data = bytearray(whole)
        data[at] ^= 1 << bit
        path.write_bytes(data)
        samples = list(Loader(selection, reading).samples())
        assert [s for s in samples if s["json"]["number"] == 2] == []
        assert [s["__replaces__"] for s in samples if "__replaces__" in s] != []


def test_mapped_files_give_the_same_and_a_file_cut_short_meanwhile_is_noticed(tmp_path, large) -> None:
    root = broken(tmp_path, large)
    selection = selection_of(str(root), large.records)
    copied, mapped = (Loader(selection, config(map_files=is_mapped)).samples() for is_mapped in (False, True))
    kept = []
    for one, other in itertools.islice(zip(copied, mapped, strict=True), 30):
        assert not other["latent.npy"].flags.writeable
        assert pickle.dumps(one["latent.npy"]) == pickle.dumps(other["latent.npy"].copy())
        assert one["json"] == other["json"]
        kept.append(other)
    path = ShardDir(root).tar(2)  # samples 6, 7, 8
    reader = RangeReader(is_mapped=True)
    size = path.stat().st_size
    (before,) = reader.read([ByteRange(str(path), size - 9000, 9000)])
    assert bytes(before) == path.read_bytes()[-9000:]
    del before
    os.truncate(path, size - 5000)
    (after,) = reader.read([ByteRange(str(path), size - 9000, 9000)])
    assert "4000 of 9000 bytes" in str(after)
    reader.close()
    with pytest.raises(ValueError, match="local"):
        next(Loader(selection_of("http://x/y", large.records), config(map_files=True)).samples())


def test_trouble_in_a_reading_thread_is_raised_where_the_sample_is_due(tmp_path, large) -> None:
    root = broken(tmp_path, large)
    path = ShardDir(root).tar(1)  # sample 5
    path.unlink()
    path.mkdir()
    order = SampleOrder(9, OrderConfig()).samples(np.arange(9)).tolist()
    samples = Loader(selection_of(str(root), large.records), config()).samples()
    before = order[: order.index(5)]
    assert [next(samples)["json"]["number"] for _ in before] == before
    with pytest.raises(IsADirectoryError):
        next(samples)


@pytest.mark.parametrize("map_files", [False, True])
def test_an_iterator_that_is_dropped_leaves_no_file_or_thread(large, map_files) -> None:
    def held() -> tuple[int, int]:
        gc.collect()
        reading = [t for t in threading.enumerate() if t.name == "worldline-read"]
        for thread in reading:
            thread.join(timeout=10)
        files = [file.path for file in psutil.Process().open_files() if file.path.endswith(".tar")]
        return len(files), sum(t.is_alive() for t in reading)

    for _ in range(3):
        samples = Loader(large, config(map_files=map_files)).samples()
        assert [next(samples)["__position__"] for _ in range(5)] == list(range(5))
        del samples
        batches = iter(Loader(large, config(map_files=map_files)))
        next(batches)
        batches.close()
        del batches
    assert held() == (0, 0)


def test_memory_in_use_is_not_used_again(large) -> None:
    """Everything ever handed out stays what it was, and what was let go is taken again."""
    samples = list(itertools.islice(Loader(large, config()).samples(), 30))
    for sample in samples:
        assert sample["latent.npy"].flags.writeable
        np.testing.assert_array_equal(sample["latent.npy"], sample["json"]["number"])
    pool = BufferPool()
    first = pool.take(300_000)
    address = np.frombuffer(first, np.uint8).ctypes.data
    views = [
        np.frombuffer(first[1000:], np.uint8)[5:].reshape(-1, 5)[::2],
        torch.from_numpy(np.frombuffer(first, np.uint8))[7:],
        memoryview(first)[3:9],
    ]
    del first
    while views:
        assert np.frombuffer(pool.take(300_000), np.uint8).ctypes.data != address
        views.pop(0)
    gc.collect()
    again = [np.frombuffer(pool.take(290_000), np.uint8).ctypes.data for _ in range(3)]
    assert address in again


def test_a_transform_may_refuse_a_sample(ragged) -> None:
    def refuse(sample: dict) -> int:
        if sample["json"]["number"] % 2:
            raise ClipRejected("test", "odd")
        return sample["json"]["number"]

    numbers = next(iter(Loader(ragged, config()).map(refuse)))
    assert len(numbers) == 12
    assert all(number % 2 == 0 for number in numbers)


def test_it_gives_up_on_data_that_is_wrong_as_a_whole(tmp_path, ragged) -> None:
    root = broken(tmp_path, ragged)
    for path in (root / "shards").iterdir():
        path.unlink()
    selection = selection_of(str(root), ragged.records)
    with pytest.raises(RuntimeError, match="none of"):
        next(iter(Loader(selection, config())))

    def rarely(sample: dict) -> dict:
        if sample["json"]["number"] < 5:
            raise ClipRejected("test", "no")
        return sample

    with pytest.raises(RuntimeError, match="could not be used"):
        take(Loader(ragged, config(max_replaced_share=0.05)).map(rarely), 20)


def test_nothing_is_unpickled(tmp_path, ragged) -> None:
    class Trap:
        def __reduce__(self):
            return (pytest.fail, ("something was unpickled",))

    for data in (npy(np.array([Trap()], dtype=object)), pickle.dumps(Trap()), b"", b"\x93NUMPY"):
        with pytest.raises(ValueError, match=r".*"):
            array_view(memoryview(data))
    with pytest.raises(ValueError, match="members"):
        config(members=("pkl",))


@given(st.lists(st.integers(0, 4), max_size=4), st.sampled_from(["<f2", "<f4", "u1", "<i8"]), st.booleans())
def test_array_view_reads_what_numpy_writes(shape, dtype, is_fortran) -> None:
    array = np.arange(int(np.prod(shape))).reshape(shape).astype(dtype)
    array = np.asfortranarray(array) if is_fortran else array
    found = array_view(memoryview(bytearray(npy(array))))
    assert found.dtype == array.dtype
    np.testing.assert_array_equal(found, array)


# Selections


def test_a_query_chooses_without_new_shards(shards_made, tmp_path) -> None:
    index = pq.read_table(shards_made / "index").to_pylist()
    long = {row["clip_id"] for row in index if row["num_frames"] > 25}
    assert 0 < len(long) < len(index)
    chosen = select(shards_made, "num_frames > 25 and scale_sigma < 0.1 and degeneracy = 'ok'")
    assert {key.decode() for key in chosen.records["clip_id"]} == long
    some = sorted(row["clip_id"] for row in index)[:2]
    decisions = pa.table({"clip_id": [*some, _id(1)], "keep": [True, False, True]})
    pq.write_table(decisions, tmp_path / "decisions.parquet")
    kept = select(shards_made, decisions=tmp_path / "decisions.parquet")
    assert [key.decode() for key in kept.records["clip_id"]] == some[:1]
    weighted = select(shards_made, weight="num_frames * 2")
    assert weighted.cumulative_weight[-1] == 2 * sum(row["num_frames"] for row in index)
    assert len({s.fingerprint for s in (chosen, kept, weighted, select(shards_made))}) == 4
    assert select(shards_made).fingerprint == select(shards_made).fingerprint
    for where, weight in (("num_frames > 1e9", None), ("nonsense(", None), ("TRUE", "-1"), ("TRUE", "NULL")):
        with pytest.raises(ValueError, match=r"no sample|query|one expression|weights"):
            select(shards_made, where, weight=weight)


def test_a_saved_selection_is_mapped(shards_made, tmp_path) -> None:
    selection = select(shards_made, weight="num_frames")
    selection.save(tmp_path / "s")
    loaded = Selection.load(tmp_path / "s")
    assert isinstance(loaded.records, np.memmap)
    assert loaded.fingerprint == selection.fingerprint
    batches = [take(Loader(s, LoaderConfig(global_batch=4)), 3) for s in (selection, loaded)]
    assert batches[0] == batches[1]


def test_an_index_that_names_other_files_is_refused(shards_made, tmp_path) -> None:
    root = tmp_path / "evil"
    shutil.copytree(shards_made, root)
    path = next((root / "index").glob("*.parquet"))
    table = pq.read_table(path)
    at = table.schema.get_field_index("shard")
    evil = pa.array(["../../../etc/passwd"] * len(table))
    pq.write_table(table.set_column(at, table.schema.field("shard"), evil), path)
    with pytest.raises(ValueError, match="not a shard's name"):
        select(root)


# Places


@pytest.fixture
def served(shards_made: Path) -> Iterator[str]:
    class Handler(http.server.SimpleHTTPRequestHandler):
        """Python's own server knows no ranges."""

        def log_message(self, *_: object) -> None:
            pass

        def do_GET(self) -> None:
            path = Path(self.translate_path(self.path))
            if not path.is_file():
                self.send_error(404)
                return
            data = path.read_bytes()
            wanted = self.headers.get("Range")
            first, last = 0, len(data) - 1
            if wanted:
                a, _, b = wanted.removeprefix("bytes=").partition("-")
                first, last = int(a), min(int(b or last), last)
            part = data[first : last + 1]
            self.send_response(206 if wanted else 200)
            self.send_header("Content-Length", str(len(part)))
            self.send_header("Content-Range", f"bytes {first}-{last}/{len(data)}")
            self.end_headers()
            self.wfile.write(part)

    server = http.server.ThreadingHTTPServer(
        ("127.0.0.1", 0), functools.partial(Handler, directory=str(shards_made))
    )
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()


def without_url(batches: list[list[bytes]]) -> list[list[dict]]:
    return [[{**pickle.loads(s), "__url__": ""} for s in batch] for batch in batches]


def test_shards_are_read_over_http_and_from_any_fsspec_store(shards_made, served) -> None:
    files = fsspec.filesystem("memory")
    files.put(f"{shards_made}/", "/shards_copy/", recursive=True)
    local, web, memory = (select(place) for place in (shards_made, served, "memory://shards_copy"))
    assert local.fingerprint == web.fingerprint == memory.fingerprint
    read = [without_url(take(Loader(s, LoaderConfig(global_batch=4)), 3)) for s in (local, web, memory)]
    assert read[0] == read[1] == read[2]


def test_a_server_s_missing_shard_is_a_replaced_sample_and_a_dead_one_an_error(served, monkeypatch) -> None:
    monkeypatch.setattr("worldline.datasets.byte_ranges._FIRST_PAUSE_S", 0.0)
    reader = RangeReader()
    found = reader.read([ByteRange(f"{served}/shards/gone.tar", 0, 10)])
    assert isinstance(found[0], ClipRejected)
    with pytest.raises(OSError, match="cannot be read"):
        reader.read([ByteRange("http://127.0.0.1:9/x.tar", 0, 10)])


def test_ranges_of_local_files(tmp_path) -> None:
    path = tmp_path / "f"
    path.write_bytes(bytes(range(100)))
    reader = RangeReader()
    found = reader.read([ByteRange(str(path), 10, 5), ByteRange(str(path), 90, 20), ByteRange("/gone", 0, 1)])
    assert bytes(found[0]) == bytes(range(10, 15))
    assert [getattr(item, "reason", None) for item in found[1:]] == ["wrong_range", "shard_missing"]
    for number in range(140):  # More than are kept open.
        (tmp_path / str(number)).write_bytes(b"x")
        assert bytes(reader.read([ByteRange(str(tmp_path / str(number)), 0, 1)])[0]) == b"x"
    reader.close()


def test_wrong_arguments() -> None:
    for wrong in (
        {"rank": 2, "world_size": 2},
        {"global_batch": 2, "world_size": 3},
        {"num_workers": -1},
        {"epochs": 0},
    ):
        with pytest.raises(ValueError, match=r"rank|count|epochs"):
            config(**wrong)
