"""The adapters between rows and the annotator: the only place that turns exceptions into outcomes.

Two callable classes, one per actor pool. Rows hold names, counts and a status, never frames or results:
each adapter writes what it finished into the dataset folder itself and says so in its row.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import os
import shlex
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

import worldline
from worldline.annotate.clip import ClipConfig, annotate_clip
from worldline.annotate.scenes import Scene, SceneConfig, probe_and_cut
from worldline.annotate.video import VideoInfo, local_copy
from worldline.datasets.commit_log import DISK_FULL_ERRORS, CommitLog, parquet_bytes, read_unit
from worldline.datasets.dataset_dir import DatasetDir, Generation, PathRecord, path_id
from worldline.datasets.given_files import given_id, load_given
from worldline.datasets.schema import (
    FAILED,
    OK,
    REJECTED,
    TRAJECTORIES,
    VIDEOS,
    ClipRejected,
    MissingBackend,
    config_hash,
    table_from_rows,
)
from worldline.datasets.table import SCAN
from worldline.datasets.withdraw import Withdrawal, withdrawal_of, withdrawals
from worldline.ray_jobs.attempts import Attempts, memory_mib, timed_out
from worldline.ray_jobs.inputs import content_id, provenance, signature, with_overrides
from worldline.ray_jobs.scan_rows import load_scene, plain_scene

STOPPED = "stopped"
"""Status of a row, never of the table: a condition of the machine (disk full, package missing) ends the
job."""

Row = dict[str, Any]


@dataclass(frozen=True, kw_only=True, slots=True)
class Limits:
    """What one unit of work may cost."""

    scan_timeout_s: float = 7200.0
    """Probing and cutting one video: ten hours of video at ten times real time, twice over."""
    clip_timeout_s: float = 1800.0
    """Geometry of one scene: a 60 s window at real time, thirty times over."""
    max_deaths: int = 3
    """A unit on which this many worker processes died in one run becomes a failed row."""
    max_worker_mib: float = 4096.0
    """A worker found above this between two units is replaced by a fresh one: native libraries leak."""

    def __post_init__(self) -> None:
        if min(self.scan_timeout_s, self.clip_timeout_s, self.max_worker_mib) <= 0 or self.max_deaths < 1:
            raise ValueError("limits must be positive")


@dataclass(frozen=True, kw_only=True, slots=True)
class Work:
    """What every adapter of a run knows."""

    out: str
    """The dataset folder as the user wrote it (it appears in replay commands)."""
    run_id: str
    scenes: SceneConfig
    engine: ClipConfig
    limits: Limits
    source: str | None = None
    licence: str | None = None
    retry_failed: bool = False
    flags: str = ""
    """Command-line flags that make the two configs from their defaults."""
    only_clip: str | None = None
    """Annotate this clip alone, again if need be."""
    probe_and_cut: Callable[[str, SceneConfig], tuple[VideoInfo, list[Scene]]] = probe_and_cut
    annotate_clip: Callable[..., dict[str, Any]] = annotate_clip

    def replay(self, path: str, clip: str = "") -> str:
        command = ["worldline", "annotate", path, "--out", self.out]
        return shlex.join([*command, *(["--clip", clip] if clip else ["--run.retry-failed"])]) + self.flags


class _Worker:
    """What both adapters need: the folder, a journal, and an end to leaking processes."""

    def __init__(self, work: Work) -> None:
        self._work = work
        self._dataset = DatasetDir.open(Path(work.out).absolute())
        self._log = CommitLog(self._dataset.root, work.run_id)
        self._num_done = 0

    def _leave_if_grown(self) -> None:
        # Before the unit's mark is set, so that leaving is no death of the unit; Ray restarts the actor and
        # hands it the same row. A worker's first unit always runs, whatever the process weighs.
        if self._num_done and memory_mib() > self._work.limits.max_worker_mib:
            os._exit(0)
        self._num_done += 1

    def _do(self, unit: Unit, step: Callable[[], Row]) -> pa.Table:
        """Runs a unit's step and commits the one row that comes of it, whatever happens in it.

        Raises OSError of a full disk and MissingBackend: the machine's condition, not the unit's.
        """
        started_s = time.monotonic()
        table = self._tried(unit, step)
        facts = {name: table[name][0].as_py() for name in ("status", "num_frames")}
        facts["num_frames"] = facts["num_frames"] or 0
        wall_s = round(time.monotonic() - started_s, 3)
        self._log.commit(unit.path, parquet_bytes(table), stage=unit.stage, **facts, wall_s=wall_s)
        return table

    def _tried(self, unit: Unit, step: Callable[[], Row]) -> pa.Table:
        attempts = Attempts(self._dataset.attempts_dir(), f"{unit.stage}.{unit.name}", self._work.run_id)
        deaths = attempts.deaths()
        if deaths and timed_out(deaths[-1]):
            return unit.row(FAILED, f"worker: time-out ({unit.timeout_s:g} s)", deaths[-1])
        if len(deaths) >= self._work.limits.max_deaths:
            last_words = deaths[-1] or "killed from outside; out of memory?"
            return unit.row(FAILED, f"worker: process died ({len(deaths)} times)", last_words)
        try:
            with attempts.watch(unit.timeout_s):
                columns = unit.columns | {"status": OK} | step()
                if columns["status"] != OK:
                    columns["replay"] = unit.replay
                return table_from_rows([columns], unit.schema)
        except ClipRejected as rejection:
            return unit.row(REJECTED, str(rejection))
        except MissingBackend:
            raise
        except Exception as error:
            if isinstance(error, OSError) and error.errno in DISK_FULL_ERRORS:
                raise
            reason = f"{unit.stage}: {type(error).__name__} ({str(error)[:200]})"
            return unit.row(FAILED, reason, traceback.format_exc())


@dataclass(frozen=True, kw_only=True, slots=True)
class Unit:
    """One piece of work whose outcome is one row of `schema` in the file `path`."""

    stage: str
    name: str
    path: Path
    schema: pa.Schema
    columns: Row
    """What the row holds whatever the outcome."""
    replay: str
    timeout_s: float

    def row(self, status: str, reason: str, error: str | None = None) -> pa.Table:
        """The row of a unit that yielded nothing."""
        outcome = {"status": status, "reason": reason, "error": error, "replay": self.replay}
        return table_from_rows([self.columns | outcome], self.schema)


class ScanVideo(_Worker):
    """One input path in, one row a scene out (one row in all where there is no scene to annotate)."""

    @functools.cached_property
    def _withdrawn(self) -> list[Withdrawal]:
        """Read once: `worldline delete` asks for a folder where no job is writing."""
        return withdrawals(self._dataset.root)

    def __call__(self, row: Row) -> list[Row]:
        self._leave_if_grown()
        try:
            return self._scan(row)
        except (OSError, MissingBackend) as error:
            return [_path_row(row, "", STOPPED, stopped=_remedy(error))]

    def _scan(self, row: Row) -> list[Row]:
        previous = self._dataset.read_path(row["path"])
        record = self._look_at(row, previous)
        self._dataset.write_path(record, previous)
        moved = previous is not None and previous.video_id != record.video_id
        buckets = [
            self._dataset.bucket(r.video_id) for r in ([record, previous] if moved and previous else [record])
        ]
        common = {"input_idx": row["input_idx"], "path": record.path, "buckets": ",".join(buckets)}
        if record.rejection is not None:
            return [_path_row(common, record.video_id, REJECTED)]
        if not self._dataset.claim(record.video_id, self._work.run_id, str(row["input_idx"])):
            return [_path_row(common, record.video_id, "copy")]
        return self._scenes(record, common)

    def _look_at(self, row: Row, previous: PathRecord | None) -> PathRecord:
        """What the path holds now; the content is read only when the file changed since it was last looked
        at."""
        path, work = row["path"], self._work
        unknown = PathRecord(
            path=path, video_id=path_id(path), signature="", source=work.source, licence=work.licence
        )
        if row["rejection"] is not None:
            return dataclasses.replace(unknown, rejection=row["rejection"])
        try:
            state = signature(path)
            same = previous is not None and previous.signature == state
            video_id = previous.video_id if same and previous else content_id(path)
        except FileNotFoundError:
            return dataclasses.replace(unknown, rejection="input: no such file")
        except IsADirectoryError:
            return dataclasses.replace(unknown, rejection="input: a folder where a file was expected")
        except OSError as error:
            if error.errno in DISK_FULL_ERRORS:
                raise
            return dataclasses.replace(
                unknown, rejection=f"input: cannot be read ({error.strerror or error})"
            )
        record = dataclasses.replace(unknown, video_id=video_id, signature=state)
        try:
            known = provenance(path, work.source, work.licence)
        except ValueError as error:
            return dataclasses.replace(record, rejection=f"sidecar: wrong ({error})")
        if (rule := withdrawal_of(self._withdrawn, known.source, known.licence)) is not None:
            return dataclasses.replace(
                record, source=known.source, licence=known.licence, rejection=f"withdrawn: {rule.reason}"
            )
        geometry = json.dumps(known.geometry, sort_keys=True)
        return dataclasses.replace(record, source=known.source, licence=known.licence, geometry=geometry)

    def _scenes(self, record: PathRecord, common: Row) -> list[Row]:
        work, dataset = self._work, self._dataset
        engine = with_overrides(work.engine, json.loads(record.geometry))
        known = given_id(record.path, engine)
        clip_hash = config_hash(engine) if known is None else config_hash(engine, known)
        generation = Generation(scan_hash=config_hash(work.scenes), clip_hash=clip_hash)
        unit = dataset.scan_unit(record.video_id, generation.scan_hash)
        scan = read_unit(unit)
        if scan is None or (work.retry_failed and scan["status"][0].as_py() == FAILED):
            scan = self._run_scan(record, generation.scan_hash, unit)
        dataset.write_config(generation.scan_hash, work.scenes)
        dataset.write_config(generation.clip_hash, engine)
        dataset.put_generation_first(record.video_id, generation)
        video, scenes = scan.to_pylist()[0], json.loads(scan["scenes"][0].as_py())
        if not scenes:
            return [_path_row(common, record.video_id, video["status"])]
        shared = common | {
            "video_id": record.video_id,
            "video_status": video["status"],
            "num_scenes": len(scenes),
        }
        hashes = {
            "scan_hash": generation.scan_hash,
            "clip_hash": generation.clip_hash,
            "geometry": record.geometry,
        }
        return [shared | hashes | {"scene_idx": k, "clip_id": s["clip_id"]} for k, s in enumerate(scenes)]

    def _run_scan(self, record: PathRecord, scan_hash: str, path: Path) -> pa.Table:
        columns = {"video_id": record.video_id, "scenes": "[]", "num_scenes": 0}
        unit = Unit(
            stage="scan",
            name=record.video_id,
            path=path,
            schema=SCAN,
            columns=columns | {"tool_version": worldline.__version__, "config_hash": scan_hash},
            replay=self._work.replay(record.path),
            timeout_s=self._work.limits.scan_timeout_s,
        )
        return self._do(unit, lambda: self._probe_and_cut(record))

    def _probe_and_cut(self, record: PathRecord) -> Row:
        with local_copy(record.path) as local:
            info, scenes = self._work.probe_and_cut(str(local), self._work.scenes)
        if not scenes:
            raise ClipRejected("scenes", "no scene long enough", f"{info.num_frames} frames")
        facts = {f.name: getattr(info, f.name) for f in dataclasses.fields(info)}
        times = [float(t) for t in facts.pop("timestamps_s")]
        # Of two paths with this content either may come first, and the unit must not tell which.
        del facts["path"], facts["video_id"]
        columns = {name: value for name, value in facts.items() if name in VIDEOS.names}
        columns |= {"timestamps_s": times, "info": json.dumps(facts), "num_scenes": len(scenes)}
        return columns | {"scenes": json.dumps([plain_scene(record.video_id, scene) for scene in scenes])}


class AnnotateClip(_Worker):
    """One scene row in, the same row with the clip's outcome out; rows without a scene pass."""

    def __call__(self, row: Row) -> Row:
        if row["scene_idx"] < 0:
            return row
        work = self._work
        if work.only_clip is not None and not row["clip_id"].startswith(work.only_clip):
            return row | {"clip_status": "skipped"}
        unit = self._dataset.clip_unit(row["video_id"], row["clip_id"], row["clip_hash"])
        done = read_unit(unit)
        if done is not None and work.only_clip is None:
            status = done["status"][0].as_py()
            if not (status == FAILED and work.retry_failed):
                return row | {
                    "clip_status": status,
                    "num_frames": done["num_frames"][0].as_py() or 0,
                    "is_new": False,
                }
        self._leave_if_grown()
        try:
            return row | self._run_clip(row, unit)
        except (OSError, MissingBackend) as error:
            return row | {"clip_status": STOPPED, "stopped": _remedy(error)}

    def _run_clip(self, row: Row, path: Path) -> Row:
        scan = read_unit(self._dataset.scan_unit(row["video_id"], row["scan_hash"]))
        if scan is None:
            raise RuntimeError(f"the scan unit of {row['path']} was removed while its clips were annotated")
        info, scene = load_scene(scan, row["scene_idx"], row["path"])
        times = info.timestamps_s
        num_frames = int(((times >= scene.span.start_s) & (times < scene.span.end_s)).sum())
        unit = Unit(
            stage="clip",
            name=f"{row['clip_id']}.{row['clip_hash']}",
            path=path,
            schema=TRAJECTORIES,
            columns=_identity(row, scene) | {"num_frames": num_frames},
            replay=self._work.replay(row["path"], row["clip_id"]),
            timeout_s=self._work.limits.clip_timeout_s,
        )
        table = self._do(unit, lambda: self._geometry(row, info, scene))
        done = {name: table[name][0].as_py() for name in ("status", "num_frames")}
        return {"clip_status": done["status"], "num_frames": done["num_frames"] or 0, "is_new": True}

    def _geometry(self, row: Row, info: VideoInfo, scene: Scene) -> Row:
        engine = with_overrides(self._work.engine, json.loads(row["geometry"]))
        sidecar = self._dataset.sidecar(row["video_id"], row["clip_id"], row["clip_hash"])
        sidecar.parent.mkdir(parents=True, exist_ok=True)
        temporary = sidecar.with_name(f".{os.getpid()}.{sidecar.name}")
        known = load_given(row["path"], engine)
        extra = {} if known is None else {"given": known}
        # The clip's files get their names before its row is committed: a row never names an absent file, and
        # a file without a row is written over by the next try with equal bytes.
        files = {
            column: (temporary.with_suffix(suffix), sidecar.with_suffix(suffix))
            for column, suffix in (("depth_path", ".depth.zip"), ("sidecar_path", ".npz"))
        }
        try:
            with local_copy(row["path"]) as local:
                here = dataclasses.replace(info, path=str(local))
                columns = self._work.annotate_clip(here, scene, engine, sidecar_path=temporary, **extra)
            for column, (made, kept) in files.items():
                if made.exists():
                    os.replace(made, kept)
                    columns |= {column: kept.relative_to(self._dataset.root).as_posix()}
        finally:
            for made, _ in files.values():
                made.unlink(missing_ok=True)
        return columns


def _path_row(row: Row, video_id: str, status: str, *, stopped: str | None = None) -> Row:
    """The one row of a path that has no scene to annotate."""
    return {
        "input_idx": row["input_idx"],
        "path": row["path"],
        "buckets": row.get("buckets", ""),
        "video_id": video_id,
        "video_status": status,
        "num_scenes": 0,
        "scene_idx": -1,
        "stopped": stopped,
    }


def _identity(row: Row, scene: Scene) -> Row:
    return {
        "clip_id": row["clip_id"],
        "video_id": row["video_id"],
        "start_s": scene.span.start_s,
        "end_s": scene.span.end_s,
        "overlap_s": scene.overlap_s,
        "shot_idx": scene.shot_idx,
        "num_cuts": scene.num_cuts,
        "tool_version": worldline.__version__,
        "config_hash": row["clip_hash"],
    }


def _remedy(error: OSError | MissingBackend) -> str:
    """What happened to the machine and what to do about it, for the person at the terminal."""
    if not isinstance(error, OSError):
        return str(error)
    what = f"{error.filename or 'a file of the dataset folder'}: {error.strerror or error}. "
    if error.errno in DISK_FULL_ERRORS:
        what += "Nothing finished is lost: free space (or raise the quota or file size limit). "
    return what + "Run the same command again."
