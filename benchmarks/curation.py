"""Decisions on a million rows, and a report of ten thousand clips opened in a browser.

python -m benchmarks.curation

Rows are synthetic but those of the real funnel (benchmarks/funnel.py). Times are medians of three runs on whatever
else the machine does; CPU seconds of all threads depend less on that.
"""

from __future__ import annotations

import dataclasses
import shutil
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.dataset as pads
import pyarrow.parquet as pq
import tyro

from benchmarks import funnel
from benchmarks.report import write_report
from benchmarks.scenes import find_videos
from worldline.datasets.decisions import write_decisions
from worldline.datasets.previews import PreviewConfig
from worldline.datasets.schema import TRAJECTORIES
from worldline.datasets.table import ROWS_PER_GROUP
from worldline.evaluate.report import ReportConfig, main
from worldline.filters.decide import decide
from worldline.filters.rule_sets import RULE_SETS


@dataclass(frozen=True, kw_only=True, slots=True)
class Options:
    """How much."""

    num_rows: int = 1_000_000
    """Rows that are decided on."""
    num_clips: int = 10_000
    """Clips of the report."""


def run(options: Options) -> None:
    """Measures, prints and writes docs/results/curation.md."""
    with tempfile.TemporaryDirectory() as folder:
        tables = {
            "Decisions": list(_decisions(Path(folder), options.num_rows)),
            "Report": list(_report(Path(folder), options.num_clips)),
        }
        videos = {name: path for name, path in find_videos(Path(folder)).items() if name != "edited"}
        dataset_dir = funnel.annotated(videos, Path(folder))
        tables["Real videos: the funnel"] = funnel.funnel_rows(dataset_dir)
        tables["Real videos: scene by scene, looked at"] = funnel.scene_rows(dataset_dir)
    notes = (
        "`wide`: every column of the schema but the per-frame lists, in files and row groups as `worldline annotate` "
        "lays out clips of some ten seconds. `narrow`: one file with large row "
        "groups. Opened: from the request to the first cards, in headless Chromium; recount: what one step of a drag costs. "
        "Real videos: annotated by the job with its default settings, no weights. `no weights`: without the rules on "
        "`dover`, `num_entities`, `depth_scale_variation` and `aesthetic`; `any scale`: without those on metric scale. "
        "`permissive` is meant to keep all that has a path, still cameras too. No threshold was changed after looking."
    )
    write_report(
        "curation", "Curation: decisions and the report", "python -m benchmarks.curation", tables, notes,
        packages=("duckdb", "pyarrow", "selenium"),
    )  # fmt: skip


def _scores(count: int) -> pa.Table:
    """Random rows with all flat columns."""
    rng, columns = np.random.default_rng(0), {}
    words = {
        "status": ["ok"], "scale_status": ["metric", "up_to_scale"], "degeneracy": ["ok", "ok", "planar"],
        "source": ["sekai_walking", "dl3dv", "mine"], "licence": ["CC0-1.0", "CC-BY-NC-4.0"],
        "path_shape": ["forward", "loop", "arc", "mixed"],
    }  # fmt: skip
    ranges = {
        "dover": 1,
        "focal_mismatch": 0.25,
        "num_cuts": 3,
        "depth_scale_variation": 1,
        "scale_sigma": 0.2,
    }
    for field in TRAJECTORIES:
        if pa.types.is_floating(field.type):
            columns[field.name] = pa.array(rng.random(count) * ranges.get(field.name, 100))
        elif pa.types.is_integer(field.type):
            columns[field.name] = pa.array(rng.integers(0, ranges.get(field.name, 100), count))
        elif pa.types.is_string(field.type):
            columns[field.name] = pa.array(rng.choice(words.get(field.name, ["word"]), count))
    columns["clip_id"] = pa.array([f"{k:036d}" for k in range(count)])
    table = pa.table(columns)
    return table.cast(pa.schema([TRAJECTORIES.field(name) for name in table.column_names]))


def _decisions(folder: Path, count: int) -> Iterator[dict[str, Any]]:
    table = _scores(count)
    pq.write_table(table, folder / "narrow.parquet")
    for k in range(16):
        part = table.slice(k * count // 16, (k + 1) * count // 16 - k * count // 16)
        pq.write_table(part, folder / f"wide-{k:02d}.parquet", row_group_size=ROWS_PER_GROUP)
    copies = pa.table(
        {
            "clip_id": table["clip_id"].slice(0, count // 5),
            "group_id": [f"g{k // 3}" for k in range(count // 5)],
        }
    )
    del table
    for layout, files in (
        ("narrow", ["narrow.parquet"]),
        ("wide", [f"wide-{k:02d}.parquet" for k in range(16)]),
    ):
        rows = pads.dataset([str(folder / name) for name in files], schema=TRAJECTORIES)
        for name, rules in RULE_SETS.items():
            times = []
            for _ in range(3):
                start, start_cpu = time.perf_counter(), time.process_time()
                found = decide(rows, rules, duplicates=copies)
                decided_s = time.perf_counter() - start
                write_decisions(folder / "decisions.parquet", found, rules)
                times.append((decided_s, time.perf_counter() - start, time.process_time() - start_cpu))
            decided_s, written_s, cpu_s = np.median(times, axis=0)
            yield {
                "layout": layout, "rows": len(found), "rules": name, "decided, s": decided_s,
                "decided and written, s": written_s, "CPU s": cpu_s,
                "under 2 s": "yes" if written_s < 2 else "NO", "kept": found["keep"].to_numpy().sum(),
            }  # fmt: skip


def _report(folder: Path, count: int) -> Iterator[dict[str, Any]]:
    rows = _scores(count).to_pylist()
    angle = np.linspace(0, 2, 120)
    poses = np.tile(np.eye(3, 4), (120, 1, 1))
    poses[:, 0, 3], poses[:, 2, 3] = np.cos(angle), np.sin(angle)
    path = {"world_from_cam": poses.reshape(-1).tolist(), "timestamps_s": np.linspace(0, 8, 120).tolist()}
    path |= {"sigma_translation": [0.01] * 120, "start_s": 0.0, "end_s": 8.0}
    (folder / "d" / "trajectories").mkdir(parents=True)
    table = pa.Table.from_pylist([row | path for row in rows], schema=TRAJECTORIES)
    pq.write_table(table, folder / "d" / "trajectories" / "00.parquet")
    config = ReportConfig(dataset=folder / "d", out=folder / "r.html", previews=PreviewConfig(count=0))
    start = time.perf_counter()
    main(dataclasses.replace(config, max_clips=count))
    written_s = time.perf_counter() - start
    row = {"clips": count, "written, s": written_s, "size, MB": config.out.stat().st_size / 1e6}
    yield row | _opened(config.out)


def _opened(page: Path) -> dict[str, float | None]:
    """Seconds until the page shows clips, median of three, and milliseconds of a recount; None without a browser."""
    chrome, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if chrome is None or driver is None:
        return {"opened, s": None, "recount, ms": None}
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = chrome
    for flag in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"):
        options.add_argument(flag)
    browser = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
    try:
        times = []
        for _ in range(3):
            start = time.perf_counter()
            browser.get(page.as_uri())
            while not browser.execute_script("return document.querySelectorAll('.card').length > 0"):
                time.sleep(0.01)
            times.append(time.perf_counter() - start)
        step = "const t = performance.now(); for (let k = 0; k < 10; k++) { judgeAll(); charts.forEach((c) => c.draw());"
        step += " showFunnel(); showTables(); refilter(); } return (performance.now() - t) / 10"
        return {"opened, s": float(np.median(times)), "recount, ms": browser.execute_script(step)}
    finally:
        browser.quit()


if __name__ == "__main__":
    run(tyro.cli(Options))
