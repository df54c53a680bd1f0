"""The command line: fast help, texts that match the configs, exit statuses, replay of one scene, a clean
wheel."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import psutil
import pyarrow.parquet as pq
import pytest

from worldline import cli

ROOT = Path(__file__).parents[1]


def _run(*args: str | Path, **more: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "worldline.cli", *(str(arg) for arg in args)]
    environment = os.environ | {"RAY_AUTH_MODE": "disabled"}
    return subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False, **more
    )  # type: ignore[call-overload]


@pytest.mark.parametrize("args", [[], ["--help"], *([name, "--help"] for name in cli.COMMANDS)])
def test_help_imports_nothing_heavy(args: list[str]) -> None:
    """Less than half a second is a matter of what is imported; processor time says it whatever else is
    running."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = _run(*args)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert done.returncode == 0
    assert "usage: worldline" in done.stdout
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 0.5


@pytest.mark.slow
@pytest.mark.parametrize("name", cli.COMMANDS)
def test_help_says_what_the_configs_say(name: str) -> None:
    """Also a guard against options that change by accident. After a change on purpose:
    `python -m worldline.cli --write-help`.
    """
    assert (cli.HELP_DIR / f"{name}.txt").read_text(encoding="utf-8") == cli.help_text(name)


def test_unknown_commands_and_options() -> None:
    assert _run("anotate").returncode == 2
    assert "annotate" in _run("anotate").stderr
    done = _run("show", "x", "--jsn")
    assert done.returncode == 2
    assert "--json" in done.stdout + done.stderr
    assert _run("--version").stdout.strip()
    assert _run("show", "/nowhere").returncode == 1


@pytest.mark.slow
def test_one_scene_again_without_ray(tmp_path: Path) -> None:
    """The replay command of a row does that scene alone; here of a video in which the true annotator finds
    nothing."""
    (tmp_path / "a.mp4").write_bytes(b"not a video, whatever the name says")
    done = _run("annotate", tmp_path / "a.mp4", "--out", tmp_path / "out", "--clip", "0")
    assert done.returncode == 2, done.stderr
    (row,) = pq.read_table(tmp_path / "out" / "videos").to_pylist()
    assert row["status"] == "rejected"
    assert row["reason"].startswith("probe: ")
    assert row["replay"] == f"worldline annotate {tmp_path}/a.mp4 --out {tmp_path}/out --run.retry-failed"
    shown = _run("show", tmp_path / "out", "--json")
    assert shown.returncode == 0
    assert json.loads(shown.stdout)["videos"]["status"] == {"rejected": 1}
    assert "a.mp4" not in _run("show", tmp_path / "out").stderr


@pytest.mark.slow
def test_the_wheel_holds_only_worldline(tmp_path: Path) -> None:
    """Real files in the place of links, nothing beside the package, and the kept help texts."""
    # Outside the checkout: a build folder left there would put deleted modules into the next wheel.
    settings = tmp_path / "settings.cfg"
    settings.write_text(f"[build]\nbuild_base = {tmp_path}/build\n[egg_info]\negg_base = {tmp_path}\n")
    options = ["-q", "--no-deps", "--no-build-isolation", "-w", str(tmp_path), str(ROOT)]
    environment = os.environ | {"DIST_EXTRA_CONFIG": str(settings)}
    subprocess.run(
        [sys.executable, "-m", "pip", "wheel", *options], check=True, capture_output=True, env=environment
    )
    (wheel,) = tmp_path.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.split("/")[0].split("-")[0] for name in names} == {"worldline"}
    for name in ("worldline/annotate/camera.py", "worldline/ray_jobs/annotate.py", "worldline/help/show.txt"):
        assert name in names
    for name in (
        "report_page.html",
        "report_page.css",
        "report_page.js",
        "report_rules.js",
        "report_charts.js",
    ):
        assert f"worldline/evaluate/{name}" in names


_LIBRARIES = ("_datetime", "pyarrow", "_raylet")
"""Compiled modules that the command loads, early and late among its imports."""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="watches the process through /proc")
@pytest.mark.parametrize("moment", [*_LIBRARIES, "raylet starts", "workers start"])
def test_ctrl_c_ends_with_one_line_at_any_moment(moment: str, tmp_path: Path) -> None:
    videos = tmp_path / "videos"
    videos.mkdir()
    (videos / "a.mp4").write_bytes(b"not a video")
    command = [sys.executable, "-m", "worldline.cli", "annotate", str(videos), "--out", str(tmp_path / "out")]
    environment = os.environ | {"RAY_AUTH_MODE": "disabled"}
    with open(tmp_path / "log", "w") as log:
        process = subprocess.Popen(
            command, cwd=ROOT, env=environment, stdout=log, stderr=log, text=True, start_new_session=True
        )
    deadline = time.monotonic() + 120
    while not _is_at(moment, process):
        assert process.poll() is None, (tmp_path / "log").read_text()
        assert time.monotonic() < deadline
        time.sleep(0.02)
    # What a terminal does: the signal goes to every process of the foreground group.
    os.killpg(process.pid, signal.SIGINT)
    assert process.wait(120) == 130
    said = (tmp_path / "log").read_text()
    assert "Traceback" not in said
    assert "KeyboardInterrupt" not in said
    assert said.strip().splitlines()[-1].startswith(("worldline: interrupted", "stopped. Finished scenes"))


def _is_at(moment: str, process: subprocess.Popen[str]) -> bool:
    if moment in _LIBRARIES:
        return moment in Path(f"/proc/{process.pid}/maps").read_text()
    wanted = {"raylet starts": "raylet", "workers start": "default_worker"}[moment]
    children = psutil.Process(process.pid).children(recursive=True)
    return any(wanted in " ".join(_command_line(child)) for child in children)


def _command_line(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.Error:
        return []
