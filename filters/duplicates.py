"""`worldline duplicates`: a dataset folder in, groups of clips that are copies of each other out.

Exact copies have equal pixels; near ones survive another codec, size, crop or frame rate. Not all pairs are looked
at: two clips meet where half of a perceptual hash (32 of 64 bits) of any of their looks is equal, so the work grows
with the number of looks. The halves are sorted a part at a time, as many parts as memory asks for. Pairs that met are
compared look by look. The groups go to DIR/duplicates/duplicates.parquet; clips without a copy have no row there.
"""

from __future__ import annotations

import json
import math
import os
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import tyro
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components

from worldline.datasets.schema import config_hash
from worldline.filters.fingerprint import CROPS, FLAT

DUPLICATES = pa.schema(
    [
        pa.field("clip_id", pa.string(), nullable=False),
        pa.field("video_id", pa.string(), nullable=False),
        pa.field("group_id", pa.string(), nullable=False, metadata={"about": "clip_id of the one to keep"}),
        pa.field("group_size", pa.int64(), nullable=False),
        pa.field("kind", pa.string(), nullable=False, metadata={"about": "exact or near"}),
        pa.field(
            "similarity",
            pa.float64(),
            nullable=False,
            metadata={"about": "largest share of looks that agree with those of another clip of the group"},
        ),
        pa.field(
            "is_representative",
            pa.bool_(),
            nullable=False,
            metadata={"about": "the one to keep: most pixels, then longest, then smallest clip_id"},
        ),
    ]
)
"""`DIR/duplicates/duplicates.parquet`."""

EXACT, NEAR = "exact", "near"

_BYTES_PER_HASH = 16.0
"""Two copies of eight bytes while a part is sorted."""


@dataclass(frozen=True, kw_only=True, slots=True)
class DuplicatesConfig:
    """Group exact and near duplicates of a dataset's clips, within and across videos."""

    dataset: tyro.conf.Positional[Path]
    """Folder that `worldline annotate` wrote."""
    max_bits: int = 5
    """Bits of 64 by which two looks may differ. Copies differ by 0 to 6, other moments of one scene by 6 and more."""
    min_share: float = 0.5
    """Share of the shorter clip's looks that must have their like in the other."""
    max_met: int = 64
    """Clips with the same half of a hash are compared with this many neighbours at most, so that a picture which
    thousands of videos share (a title card) costs no square."""
    memory_gb: float = 4.0
    """What sorting may take: half for hashes, half for DuckDB, which goes on on disk."""
    num_threads: int = 2
    """Threads of DuckDB."""
    json: bool = False
    """Print one JSON object."""

    def __post_init__(self) -> None:
        if not 0 <= self.max_bits < 32 or not 0 < self.min_share <= 1:
            raise ValueError("max_bits must be 0 to 31 and min_share in (0, 1]")
        if self.max_met < 1 or self.memory_gb <= 0 or self.num_threads < 1:
            raise ValueError("max_met, memory_gb and num_threads must be positive")


@dataclass(frozen=True, kw_only=True, slots=True)
class Groups:
    """Clips that have a copy."""

    table: pa.Table
    """Of schema DUPLICATES, in order of (group_id, clip_id)."""
    num_clips: int
    """Clips looked at: those with a fingerprint."""
    num_pairs: int
    """Pairs compared look by look."""


def find_duplicates(config: DuplicatesConfig) -> Groups:
    """Groups of copies among the clips of DIR/trajectories/*.parquet.

    Raises ValueError where there is no table or it has no fingerprints.
    """
    files = sorted(str(file) for file in (config.dataset / "trajectories").glob("**/*.parquet"))
    if not files:
        raise ValueError(f"{config.dataset}: no trajectories/*.parquet; `worldline annotate` writes them")
    out_dir = config.dataset / "duplicates"
    out_dir.mkdir(exist_ok=True)
    with (
        tempfile.TemporaryDirectory(prefix=".sorting-", dir=out_dir) as folder,
        duckdb.connect(os.path.join(folder, "clips.duckdb")) as database,
    ):
        database.execute(f"SET memory_limit='{config.memory_gb / 2}GB'; SET threads={config.num_threads}")
        database.execute(f"SET temp_directory='{folder}'")
        _load(database, files)
        [(num_clips,)] = database.execute("SELECT count(*) FROM clips").fetchall()
        same = _exact_pairs(database)
        met = _met_pairs(database, config)
        pairs, shares = _compared(database, met, config)
        return Groups(
            table=_grouped(database, same, pairs, shares), num_clips=int(num_clips), num_pairs=len(met)
        )


def _load(database: duckdb.DuckDBPyConnection, files: list[str]) -> None:
    """Table clips(row_idx, ...), numbered in order of the files, so that equal data gives equal groups."""
    columns = "clip_id, video_id, pixels_hash, fingerprint, coalesce(width * height, 0) AS pixels, end_s - start_s AS length_s"
    source = database.read_parquet(files, union_by_name=True)
    if missing := {"pixels_hash", "fingerprint"} - set(source.columns):
        raise ValueError(f"the table has no {', '.join(sorted(missing))}: annotate it with this version")
    database.execute(
        f"CREATE TABLE clips AS SELECT row_number() OVER () - 1 AS row_idx, * FROM "
        f"(SELECT {columns} FROM source WHERE fingerprint IS NOT NULL)"
    )


def _exact_pairs(database: duckdb.DuckDBPyConnection) -> np.ndarray:
    """[n, 2] rows whose pixels are equal, each with the first of its kind."""
    found = database.execute(
        "SELECT first_idx, row_idx FROM (SELECT row_idx, min(row_idx) OVER (PARTITION BY pixels_hash) AS first_idx "
        "FROM clips WHERE pixels_hash IS NOT NULL) WHERE first_idx <> row_idx"
    ).fetchnumpy()
    return np.stack([found["first_idx"], found["row_idx"]], axis=1).astype(np.int64).reshape(-1, 2)


def _met_pairs(database: duckdb.DuckDBPyConnection, config: DuplicatesConfig) -> np.ndarray:
    """[n, 2] pairs of rows, first < second, that share half a hash."""
    [(num_hashes,)] = database.execute("SELECT sum(len(fingerprint)) FROM clips").fetchall()
    num_parts = math.ceil(int(num_hashes or 0) * _BYTES_PER_HASH / (config.memory_gb / 2 * 1e9)) or 1
    found = [
        _neighbours(_sorted_halves(database, shift, part, num_parts), config.max_met)
        for shift in (0, 32)
        for part in range(num_parts)
    ]
    return np.unique(np.concatenate(found), axis=0)


def _sorted_halves(database: duckdb.DuckDBPyConnection, shift: int, part: int, num_parts: int) -> np.ndarray:
    """[n] uint64, sorted: half a hash above the row it is from, each once; the halves that belong to this part."""
    found = [np.zeros(0, dtype=np.uint64)]
    for rows, lists in _fingerprints(database, "SELECT row_idx, fingerprint FROM clips"):
        hashes = lists.values.to_numpy()[lists.offsets[0].as_py() : lists.offsets[-1].as_py()].view(np.uint64)
        row_of_hash = np.repeat(rows, np.diff(lists.offsets.to_numpy()))
        half = (hashes >> np.uint64(shift)) & np.uint64(0xFFFFFFFF)
        is_wanted = hashes != FLAT
        if num_parts > 1:
            is_wanted &= half % np.uint64(num_parts) == part
        found.append((half[is_wanted] << np.uint64(32)) | row_of_hash[is_wanted].astype(np.uint64))
    halves = np.concatenate(found)
    halves.sort()
    return halves[np.diff(halves, prepend=~halves[:1]) != 0]


def _fingerprints(
    database: duckdb.DuckDBPyConnection, query: str
) -> Iterator[tuple[np.ndarray, pa.ListArray]]:
    """Batches of a query for row_idx and fingerprint: [n] int64 and n lists."""
    for batch in database.sql(query).to_arrow_reader(50_000):
        yield batch.column("row_idx").to_numpy(), batch.column("fingerprint")


def _neighbours(halves: np.ndarray, max_met: int) -> np.ndarray:
    """[n, 2] pairs of rows with equal half at most max_met places apart."""
    half, row_idx = halves >> np.uint64(32), (halves & np.uint64(0xFFFFFFFF)).astype(np.int64)
    is_shared = half[1:] == half[:-1]
    is_shared = np.append(is_shared, False) | np.insert(is_shared, 0, False) if len(half) else is_shared
    half, row_idx = half[is_shared], row_idx[is_shared]
    pairs = [np.zeros((0, 2), dtype=np.int64)]
    for distance in range(1, min(max_met, len(half) - 1) + 1):
        is_same = half[distance:] == half[:-distance]
        if not is_same.any():
            break
        pairs.append(np.stack([row_idx[:-distance][is_same], row_idx[distance:][is_same]], axis=1))
    return np.concatenate(pairs)


def _compared(
    database: duckdb.DuckDBPyConnection, met: np.ndarray, config: DuplicatesConfig
) -> tuple[np.ndarray, np.ndarray]:
    """Pairs [n, 2] that are near duplicates, and their shares of agreeing looks [n]."""
    pairs, shares = [np.zeros((0, 2), dtype=np.int64)], [np.zeros(0)]
    for part in np.array_split(met, max(1, len(met) // 100_000)):
        hashes = _by_row(database, np.unique(part))
        share = np.array([agreement(hashes[a], hashes[b], config.max_bits) for a, b in part.tolist()])
        is_copy = share >= config.min_share
        pairs.append(part[is_copy])
        shares.append(share[is_copy])
    return np.concatenate(pairs), np.concatenate(shares)


def _by_row(database: duckdb.DuckDBPyConnection, rows: np.ndarray) -> dict[int, np.ndarray]:
    """Row -> fingerprint [looks * crops] int64."""
    database.register("wanted", pa.table({"row_idx": rows}))
    found: dict[int, np.ndarray] = {}
    for row_idx, lists in _fingerprints(
        database, "SELECT row_idx, fingerprint FROM clips SEMI JOIN wanted USING (row_idx)"
    ):
        values, offsets = lists.values.to_numpy(), lists.offsets.to_numpy()
        found |= {int(row): values[offsets[k] : offsets[k + 1]] for k, row in enumerate(row_idx)}
    return found


def agreement(first: np.ndarray, second: np.ndarray, max_bits: int) -> float:
    """Share of the shorter fingerprint's looks that have their like in the other, in any order; flat looks are left out.

    first, second: [looks * len(CROPS)] int64, as in the column fingerprint.
    """
    few, many = (first, second) if len(first) <= len(second) else (second, first)
    looks = few.reshape(-1, len(CROPS))
    looks = looks[(looks != FLAT).any(axis=1)]
    others = many[many != FLAT]
    if not len(looks) or not len(others):
        return 0.0
    bits = np.bitwise_count(looks.view(np.uint64)[:, :, None] ^ others.view(np.uint64))  # [looks, crops, n]
    agrees = (bits <= max_bits) & (looks != FLAT)[:, :, None]
    return float(agrees.any(axis=(1, 2)).mean())


def _grouped(
    database: duckdb.DuckDBPyConnection, same: np.ndarray, pairs: np.ndarray, shares: np.ndarray
) -> pa.Table:
    """The table of groups: everything that is connected by pairs, however many lie between."""
    edges = np.concatenate([same, pairs])
    shares = np.concatenate([np.ones(len(same)), shares])
    rows, ends = np.unique(edges, return_inverse=True)
    ends = ends.reshape(-1, 2)
    _, label = connected_components(
        coo_matrix((shares + 1, ends.T), shape=(len(rows), len(rows))), directed=False
    )
    similarity = np.zeros(len(rows))
    for side in (0, 1):
        np.maximum.at(similarity, ends[:, side], shares)
    is_exact = np.isin(rows, same)
    database.register(
        "found", pa.table({"row_idx": rows, "label": label, "similarity": similarity, "is_exact": is_exact})
    )
    table = database.sql(
        "WITH ranked AS (SELECT *, row_number() OVER (PARTITION BY label ORDER BY pixels DESC, length_s DESC, "
        "clip_id) AS place FROM found JOIN clips USING (row_idx)) "
        "SELECT clip_id, video_id, first(clip_id ORDER BY place) OVER (PARTITION BY label) AS group_id, "
        "count(*) OVER (PARTITION BY label) AS group_size, "
        f"CASE WHEN is_exact THEN '{EXACT}' ELSE '{NEAR}' END AS kind, similarity, place = 1 AS is_representative "
        "FROM ranked ORDER BY group_id, clip_id"
    ).to_arrow_table()
    return table.cast(DUPLICATES)


def write_groups(groups: Groups, config: DuplicatesConfig) -> Path:
    """Writes the table, whole or not at all, with the settings in its metadata."""
    path = config.dataset / "duplicates" / "duplicates.parquet"
    settings = {
        name: value for name, value in asdict(config).items() if name in ("max_bits", "min_share", "max_met")
    }
    metadata = {"worldline_config": json.dumps(settings), "worldline_config_hash": config_hash(settings)}
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    pq.write_table(groups.table.replace_schema_metadata(metadata), temporary)
    os.replace(temporary, path)
    return path


def main(config: DuplicatesConfig) -> int:
    """Exit status: 0 written, 1 not a dataset folder or without fingerprints."""
    try:
        groups = find_duplicates(config)
    except ValueError as error:
        print(f"worldline duplicates: {error}", file=sys.stderr)
        return 1
    path = write_groups(groups, config)
    kept = int(np.sum(groups.table["is_representative"].to_numpy(zero_copy_only=False)))
    counts = {
        "clips": groups.num_clips,
        "pairs_compared": groups.num_pairs,
        "groups": kept,
        "copies": groups.table.num_rows - kept,
        "table": str(path),
    }
    print(json.dumps(counts) if config.json else _sentence(counts))
    return 0


def _sentence(counts: dict[str, int | str]) -> str:
    return (
        f"{counts['clips']} clips, {counts['pairs_compared']} pairs compared: {counts['groups']} groups with "
        f"{counts['copies']} copies beside the one to keep -> {counts['table']}"
    )


if __name__ == "__main__":
    sys.exit(main(tyro.cli(DuplicatesConfig)))
