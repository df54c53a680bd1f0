"""A video's name and a clip config in, the poses or depth that lie beside the video out.

The digest of what lies there is part of the key of a unit of work: a file that appears or changes makes the
clips of its video be done again, and no others.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import fsspec

from worldline.annotate.clip import ClipConfig
from worldline.annotate.given import ESTIMATE, GT_DEPTH, GT_POSE, Given, GivenPoses, named
from worldline.annotate.given_depth import depth_digest, open_given_depth
from worldline.annotate.video import local_copy
from worldline.datasets.formats.registry import importer
from worldline.datasets.schema import ClipRejected


def given_id(video_path: str, config: ClipConfig) -> str | None:
    """32 hex digits that change with the given data; of an absent file another than of any present one; None
    in the mode that uses none."""
    if config.mode == ESTIMATE:
        return None
    if config.mode == GT_DEPTH:
        return depth_digest(Path(named(config.given.depth_path, video_path)))
    path = named(config.given.poses_path, video_path)
    try:
        with fsspec.open(path, "rb") as file:
            content = file.read()
    except (OSError, ValueError):
        # Formats that are a folder have no bytes of their own.
        return depth_digest(Path(path))
    return hashlib.sha256(content).hexdigest()[:32]


def load_given(video_path: str, config: ClipConfig) -> Given | None:
    """The given data of a video; None in the mode that uses none.

    Raises ClipRejected where they are absent or unreadable, ValueError for an unknown format of poses.
    """
    identity = given_id(video_path, config)
    if identity is None:
        return None
    if config.mode == GT_DEPTH:
        depth = open_given_depth(Path(named(config.given.depth_path, video_path)), config.given)
        return Given(given_id=identity, depth=depth)
    return Given(given_id=identity, poses=_read_poses(named(config.given.poses_path, video_path), config))


def _read_poses(path: str, config: ClipConfig) -> GivenPoses:
    read = importer(config.given.poses_format)
    try:
        with local_copy(path) as local:
            clip = read(Path(local))
    except FileNotFoundError:
        raise ClipRejected(GT_POSE, "no given poses", f"{path} is not there") from None
    except (ValueError, OSError, KeyError, json.JSONDecodeError) as error:
        raise ClipRejected(GT_POSE, "given poses cannot be read", str(error)) from error
    known = clip.is_registered
    return GivenPoses(timestamps_s=clip.timestamps_s[known], world_from_cam=clip.world_from_cam[known])
