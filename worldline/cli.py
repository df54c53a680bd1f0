"""The `worldline` command: a table of subcommands, each a config dataclass and a `main(config) -> int` in
its module.

Nothing of a subcommand is imported before it is chosen. `worldline COMMAND --help` prints the text kept in
`worldline/help/`, because building it means importing the whole annotator (a second or more); a test keeps
the texts equal to what the configs say, and `python -m worldline.cli --write-help` writes them anew.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import os
import signal
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import NamedTuple


class Command(NamedTuple):
    module: str
    """Has the config class and `main(config) -> int`."""
    config: str
    about: str


COMMANDS = {
    "fetch": Command("worldline.datasets.fetch", "FetchConfig", "a list of addresses to videos on disk"),
    "annotate": Command(
        "worldline.ray_jobs.annotate", "JobConfig", "videos to camera trajectories in Parquet, on Ray"
    ),
    "show": Command("worldline.datasets.show", "ShowConfig", "what a dataset folder holds"),
    "export": Command("worldline.datasets.export", "ExportConfig", "one clip in another system's format"),
    "score": Command("worldline.evaluate.score", "ScoreConfig", "a clip's errors against a true trajectory"),
    "lint": Command(
        "worldline.evaluate.lint", "LintConfig", "look for wrong axes, directions, origins and units"
    ),
    "shard": Command(
        "worldline.ray_jobs.shard", "ShardConfig", "scenes to WebDataset shards with a Parquet index, on Ray"
    ),
    "encode": Command(
        "worldline.ray_jobs.encode", "EncodeJobConfig", "shards of videos to shards of latents, on Ray"
    ),
    "verify": Command(
        "worldline.datasets.verify", "VerifyConfig", "check a folder byte for byte, and mend it"
    ),
    "append": Command("worldline.datasets.append", "AppendConfig", "add another dataset folder's work"),
    "compact": Command(
        "worldline.datasets.compact", "CompactConfig", "remove what is superseded, merge small shards"
    ),
    "delete": Command(
        "worldline.datasets.withdraw", "WithdrawConfig", "delete a source or licence, with a log"
    ),
    "decide": Command(
        "worldline.datasets.decisions", "DecideConfig", "which clips a rule set keeps, and why not the others"
    ),
    "explain": Command(
        "worldline.datasets.explain", "ExplainConfig", "every score of a clip against its range"
    ),
    "duplicates": Command(
        "worldline.filters.duplicates", "DuplicatesConfig", "group copies of clips, exact and near"
    ),
    "caption": Command(
        "worldline.datasets.captions", "CaptionJobConfig", "what is to be seen in each clip, in words"
    ),
    "report": Command(
        "worldline.evaluate.report", "ReportConfig", "one page to look through scores, clips and failures"
    ),
    "train": Command("worldline.train.trainer", "TrainConfig", "one stage of the world model, from shards"),
    "distill": Command("worldline.train.distill", "DistillConfig", "a chunk-causal run to one of four steps"),
    "generate": Command(
        "worldline.train.generate", "GenerateConfig", "a video from an image, a caption and a camera path"
    ),
    "drive": Command(
        "worldline.train.drive", "DriveConfig", "a run driven live in the browser, and its replay"
    ),
    "recipe": Command(
        "worldline.ray_jobs.recipe", "RecipeConfig", "raw videos to a world model that follows the camera"
    ),
    "variants": Command(
        "worldline.ray_jobs.variants",
        "VariantsConfig",
        "what a recipe's model costs refined, streamed, quantised",
    ),
    "benchmark": Command(
        "worldline.train.benchmark",
        "BenchmarkConfig",
        "long paths through rendered rooms against their true renders",
    ),
    "demo": Command(
        "worldline.ray_jobs.demo", "DemoConfig", "annotate two small videos and show what comes out"
    ),
}

INTERRUPTED = 130
"""Exit status after Ctrl-C, as shells have it."""

HELP_DIR = Path(__file__).resolve().parent / "help"


def main(argv: list[str] | None = None) -> int:
    """Runs a subcommand; its exit status, or 2 for a command line that is not understood."""
    argv = sys.argv[1:] if argv is None else argv
    name, rest = (argv[0], argv[1:]) if argv else ("--help", [])
    if name in ("-h", "--help"):
        print(_overview())
        return 0
    if name == "--version":
        print(importlib.import_module("worldline").__version__)
        return 0
    if name not in COMMANDS:
        print(f"worldline: no command {name!r}\n\n{_overview()}", file=sys.stderr)
        return 2
    kept = HELP_DIR / f"{name}.txt"
    if {"-h", "--help"} & set(rest) and kept.exists():
        print(kept.read_text(encoding="utf-8"), end="")
        return 0
    return _run(name, rest)


def _overview() -> str:
    lines = [f"  {name:<10} {command.about}" for name, command in COMMANDS.items()]
    return "\n".join(["usage: worldline COMMAND ... (worldline COMMAND --help tells more)", "", *lines])


def _run(name: str, rest: list[str]) -> int:
    try:
        with _leaving_at_once():
            import tyro

            module = importlib.import_module(COMMANDS[name].module)
            config = tyro.cli(getattr(module, COMMANDS[name].config), prog=f"worldline {name}", args=rest)
        return module.main(config)
    except KeyboardInterrupt:
        print("\nworldline: interrupted", file=sys.stderr)
        return INTERRUPTED


@contextlib.contextmanager
def _leaving_at_once() -> Iterator[None]:
    """Ctrl-C ends the process on the spot: modules that are interrupted while they load turn the interrupt
    into errors of their own, or swallow it. Nothing has been started yet that would have to be ended.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    previous = signal.signal(signal.SIGINT, _leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, previous)


def _leave(signal_number: int, frame: FrameType | None) -> None:
    os.write(2, b"\nworldline: interrupted\n")
    os._exit(INTERRUPTED)


def help_text(name: str) -> str:
    """The subcommand's help as its config says it now, 100 columns wide and without colour."""
    from unittest import mock

    plain = {"COLUMNS": "100", "NO_COLOR": "1", "TERM": "dumb"}
    printed = io.StringIO()
    with (
        mock.patch.dict(os.environ, plain),
        contextlib.redirect_stdout(printed),
        contextlib.suppress(SystemExit),
    ):
        _run(name, ["--help"])
    return "\n".join(line.rstrip() for line in printed.getvalue().splitlines()) + "\n"


def write_help() -> None:
    """Writes the help text of every subcommand."""
    HELP_DIR.mkdir(exist_ok=True)
    for name in COMMANDS:
        (HELP_DIR / f"{name}.txt").write_text(help_text(name), encoding="utf-8")


if __name__ == "__main__":
    if sys.argv[1:] == ["--write-help"]:
        write_help()
    else:
        sys.exit(main())
