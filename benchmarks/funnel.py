"""Real videos through the whole job and every named rule set, beside what a person saw in their frames.

Part of benchmarks/curation.py. The sentences were written from six frames of each scene; a scene that the job cuts in
another place has none.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pyarrow.dataset as pads

from worldline.datasets.decisions import RulesConfig, decide_dataset, reason_counts
from worldline.datasets.posed_clip import open_table
from worldline.ray_jobs.annotate import JobConfig
from worldline.ray_jobs.annotate import main as annotate

ASKED = (
    RulesConfig(rules="sana_wm"),
    RulesConfig(rules="sana_wm", without=("dover", "num_entities", "depth_scale_variation")),
    RulesConfig(rules="spatialvid"),
    RulesConfig(rules="spatialvid", without=("aesthetic",)),
    RulesConfig(rules="permissive"),
    RulesConfig(rules="strict"),
    RulesConfig(rules="strict", without=("scale_status", "scale_sigma")),
)
SHOWN = {"sana_wm, no weights": 1, "spatialvid, no weights": 3, "strict": 5, "strict, any scale": 6}
"""Column -> place in ASKED; the whole sets that need weights refuse everything, `permissive` nothing."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Seen:
    """What a person saw in a scene, and whether they agree with the decisions."""

    frames: str
    verdict: str


BY_EYE = {
    ("bikes", 0): Seen(
        frames="From above: the roof of a bus drives past under a camera that stands still.",
        verdict="Agree: nothing to learn a path from. split_screen, picture_in_picture and moving_share are unknown, "
        "rightly: in a still scene the roof's edges might be a seam, and of a plain roof on a plain road hardly any flow "
        "can be known.",
    ),
    ("bikes", 1): Seen(
        frames="Long lens, cars far out of focus; a man and a taxi cross close by.",
        verdict="Agree: the path found is of things that pass. The field of view of 11 degrees is plausible for such "
        "a lens, and blur (0.59) is right about most of the picture.",
    ),
    ("bikes", 2): Seen(
        frames="A cyclist waits beside a van, traffic passes close by; the camera hardly pans.",
        verdict="Agree: it only turns a little.",
    ),
    ("bikes", 3): Seen(
        frames="Traffic behind a railing, camera almost still.",
        verdict="Agree: no path. picture_in_picture (0.09) is low, rightly: there are only the railing's posts.",
    ),
    ("bikes", 4): Seen(
        frames="A slow slide along a wall with a bicycle; a man walks through.",
        verdict="Agree with keeping it but for its length. picture_in_picture (0.37) is rightly under what most insets "
        "get, though doors and windows hardly move in 2 s.",
    ),
    ("bikes", 5): Seen(
        frames="A third of a second: spokes behind a tree out of focus.",
        verdict="Agree: too short for anything.",
    ),
    ("gopro_walk", 0): Seen(
        frames="A steady walk along a building in daylight.",
        verdict="Disagree: the best scene of all. It falls to the published end of the field of view, 120 degrees; the "
        "lens has 121.8, which is true.",
    ),
    ("highway", 0): Seen(
        frames="Motorway from a car, steady, all of it sharp.",
        verdict="Agree: a fine drive, only its scale is not known.",
    ),
    ("kitti_a", 0): Seen(
        frames="A street from a car, grey, bright and sharp.",
        verdict="Agree with keeping it. Disagree with spatialvid: vmaf_motion (20) is that high because the film has 10 "
        "frames a second, not because it is wild.",
    ),
    ("redkitchen_a", 0): Seen(
        frames="Handheld around a kitchen table, smeared in fast turns.",
        verdict="Agree; spatialvid's length limit (15 s) is about cutting, not about this scene.",
    ),
    ("running_dog", 0): Seen(
        frames="Walking backwards over grass, looking down at a dog that runs after the camera.",
        verdict="Agree with spatialvid: restless. Keeping it is right by the path, doubtful for a static world: the dog "
        "fills a tenth of the picture, moving_share says 0.23 of a limit of 0.5.",
    ),
    ("static_square", 0): Seen(
        frames="A surveillance camera above a square, people walk about.",
        verdict="Agree: the camera never moves. spatialvid names the length first; motion would refuse it as well.",
    ),
}  # fmt: skip


def annotated(videos: dict[str, Path], folder: Path) -> Path:
    """The dataset folder of these videos, made by the job."""
    raw, out = folder / "raw", folder / "trips"
    raw.mkdir()
    for name, path in videos.items():
        (raw / f"{name}{path.suffix}").symlink_to(path.resolve())
    if annotate(JobConfig(inputs=(str(raw),), out=out)) != 0:
        raise RuntimeError("the job failed")
    return out


def funnel_rows(dataset_dir: Path) -> list[dict[str, object]]:
    """How many scenes fall at which rule of each set."""
    rows: list[dict[str, object]] = []
    for asked in ASKED:
        rules = asked.rule_set()
        for reason, count in reason_counts(decide_dataset(dataset_dir, rules)).items():
            rows.append({"rules": rules.name, "decision": reason, "scenes": count})
    return rows


def scene_rows(dataset_dir: Path) -> list[dict[str, object]]:
    """Each scene's decisions and what a person says of them."""
    columns = ["clip_id", "path", "shot_idx", "start_s", "end_s"]
    table = pads.dataset(open_table(dataset_dir).files).to_table(columns)
    scenes = sorted(table.to_pylist(), key=lambda row: (row["path"], row["start_s"]))
    reasons = {}
    for name, place in SHOWN.items():
        decided = decide_dataset(dataset_dir, ASKED[place].rule_set()).to_pylist()
        reasons[name] = {row["clip_id"]: row["reason"] or "kept" for row in decided}
    rows: list[dict[str, object]] = []
    for scene in scenes:
        video = Path(scene["path"]).stem
        seen = BY_EYE.get((video, scene["shot_idx"]))
        row = {"scene": f"{video} {scene['start_s']:.1f}-{scene['end_s']:.1f} s"}
        row |= {name: found[scene["clip_id"]] for name, found in reasons.items()}
        rows.append(
            row | {"seen": seen.frames if seen else None, "a person says": seen.verdict if seen else None}
        )
    return rows
