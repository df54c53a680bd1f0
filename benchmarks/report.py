"""Measured tables in, printed and as docs/results/<name>.md out, with what is needed to repeat them.

Every benchmark ends here, so that all reports look alike and none forgets its command, versions and machine.
"""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping, Sequence
from datetime import date
from importlib import metadata
from pathlib import Path
from typing import Any

RESULTS_DIR = Path(__file__).resolve().parents[1] / "docs" / "results"

PACKAGES = (
    "decord2",
    "av",
    "numpy",
    "opencv-python-headless",
    "pycolmap",
    "ray",
    "scenedetect-headless",
    "torch",
)
"""Distributions whose versions every report states; others are added with `write_report(packages=...)`."""


def write_report(
    name: str,
    title: str,
    command: str,
    tables: Mapping[str, Sequence[Mapping[str, Any]]],
    notes: str = "",
    *,
    packages: Sequence[str] = (),
    results_dir: Path = RESULTS_DIR,
) -> Path:
    """Prints a report and writes it to docs/results/<name>.md.

    `tables`: caption -> rows; a row maps column -> value, columns in the order they first appear. Floats
    are shown with four significant digits, None as a dash. `command`: the line that makes this report, run
    from the repository root. Returns the file's path. Raises ValueError where the text names a folder of
    this machine.
    """
    root = str(Path(__file__).resolve().parents[1])
    body = [f"# {title}", ""]
    for caption, rows in tables.items():
        body += [f"## {caption}", "", *_markdown_table(rows), ""]
    if notes:
        body += [notes.strip(), ""]
    body += ["## How to repeat it", "", f"    {command}", "", *_machine_lines(packages), ""]
    text = "\n".join(body)
    if root in text:
        raise ValueError(f"the report names a folder of this machine ({root}); give relative paths")
    print(text)
    results_dir.mkdir(parents=True, exist_ok=True)
    path = results_dir / f"{name}.md"
    temporary = path.with_suffix(".md.tmp")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)
    return path


def _markdown_table(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    columns = list(dict.fromkeys(column for row in rows for column in row))
    if not columns:
        return ["(no rows)"]
    lines = [
        columns,
        ["---"] * len(columns),
        *([_cell(row.get(column)) for column in columns] for row in rows),
    ]
    return ["| " + " | ".join(line) + " |" for line in lines]


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:.4g}" if abs(value) < 1e4 else f"{value:.0f}"
    return str(value).replace("|", "\\|")


def _machine_lines(packages: Sequence[str]) -> list[str]:
    versions = []
    for package in dict.fromkeys((*PACKAGES, *packages)):
        try:
            versions.append(f"{package} {metadata.version(package)}")
        except metadata.PackageNotFoundError:
            continue
    memory_gib = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    system = f"Python {platform.python_version()}, {platform.system()} {platform.machine()}"
    return [
        f"- {date.today().isoformat()}, {system}",
        f"- CPU: {_cpu_model()}, {cores} cores, {memory_gib:.0f} GiB memory",
        f"- {', '.join(versions)}",
    ]


def _cpu_model() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
