"""Groups of pictures left undecoded: an edited film is cut as if every frame had been seen, whatever encoded it."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from worldline.annotate.cuts import CutConfig
from worldline.annotate.quiet import closed_and_quiet_groups, unsettled
from worldline.annotate.scenes import SceneConfig, detect_scenes
from worldline.annotate.video import probe

ENCODERS = {
    "x264 keeps to its groups": "-c:v libx264 -preset veryfast -g 24 -bf 0 -sc_threshold 0",
    "x264 with B-frames": "-c:v libx264 -preset veryfast -g 24 -bf 3 -sc_threshold 0",
    "x264 with keyframes at cuts": "-c:v libx264 -preset veryfast -g 24",
    "x264 at one rate": "-c:v libx264 -preset veryfast -g 24 -sc_threshold 0 -b:v 400k -maxrate 400k -bufsize 100k",
    "MPEG-4": "-c:v mpeg4 -q:v 4 -g 24 -sc_threshold 1000000000",
    "VP9": "-c:v libvpx-vp9 -deadline realtime -cpu-used 8 -g 24 -b:v 500k",
}


def _shot(seed: int, count: int, speed_px: float = 1.0) -> np.ndarray:
    """[count, 180, 320, 3] uint8: a camera that moves, or with speed 0 rests, before a textured wall."""
    rng = np.random.default_rng(seed)
    wall = sum(
        cv2.GaussianBlur(rng.standard_normal((200, 480, 3)), (0, 0), sigma) * sigma * weight
        for sigma, weight in ((1.5, 0.4), (5.0, 0.7), (18.0, 1.0))
    )
    wall = np.clip(rng.uniform(70, 180, 3) + 60 * wall, 0, 255).astype(np.float32)
    frames = [cv2.getRectSubPix(wall, (320, 180), (160 + speed_px * k, 100)) for k in range(count)]
    return np.clip(frames, 0, 255).astype(np.uint8)


def _film() -> np.ndarray:
    """Long shots of a camera that moves and one that rests, cuts at odd places, a short insert of another shot, a
    dissolve, a fade through black, and long shots again."""
    first, second = _shot(1, 120), _shot(2, 130, 0.0)
    weight = np.linspace(0, 1, 16)[1:-1, None, None, None]
    mixed = (second[-14:] * (1 - weight) + _shot(3, 14) * weight).round().astype(np.uint8)
    down = (_shot(3, 24)[14:] * np.linspace(1, 0, 10)[:, None, None, None]).astype(np.uint8)
    black = np.zeros((9, 180, 320, 3), np.uint8)
    insert = np.concatenate([_shot(4, 60), _shot(5, 20), _shot(4, 66)[60:], _shot(4, 160)[66:]])
    return np.concatenate(
        [first, second[:-14], mixed, _shot(3, 70)[14:], down, black, insert, _shot(6, 100, 0.0)]
    )


@pytest.mark.slow
@pytest.mark.parametrize("encoder", list(ENCODERS))
def test_a_film_is_cut_as_if_every_group_had_been_decoded(encoder, media, tmp_path: Path) -> None:
    suffix = ".webm" if encoder == "VP9" else ".mp4"
    info = probe(str(media.encode(tmp_path / f"film{suffix}", _film(), 25.0, ENCODERS[encoder])))
    trusting = detect_scenes(info, SceneConfig())
    assert trusting == detect_scenes(info, SceneConfig(cuts=CutConfig(trusts_packets=False)))
    assert len(trusting) >= 8


def test_a_steady_shot_is_quiet_and_one_with_a_cut_inside_a_group_is_not(media, tmp_path: Path) -> None:
    steady = probe(
        str(media.encode(tmp_path / "a.mp4", _shot(7, 96, 0.5), 25.0, ENCODERS["x264 keeps to its groups"]))
    )
    assert (0, 24) in closed_and_quiet_groups(steady, max_pixels=160 * 90)[1]
    cut = np.concatenate([_shot(7, 36, 0.5), _shot(8, 60, 0.5)])
    info = probe(str(media.encode(tmp_path / "b.mp4", cut, 25.0, ENCODERS["x264 keeps to its groups"])))
    assert (24, 48) not in closed_and_quiet_groups(info, max_pixels=160 * 90)[1]


@given(
    st.lists(st.tuples(st.integers(1, 40), st.booleans()), min_size=1, max_size=12),
    st.floats(0.0, 2.0),
)
def test_what_is_left_holds_all_that_is_not_quiet_and_is_disjoint(groups, margin_s: float) -> None:
    edges = np.cumsum([0, *(length for length, _ in groups)])
    quiet = [
        (int(a), int(b))
        for a, b, (_, is_quiet) in zip(edges[:-1], edges[1:], groups, strict=True)
        if is_quiet
    ]
    stretches = unsettled(quiet, np.arange(edges[-1]) / 25, margin_s)
    is_seen = np.zeros(edges[-1], int)
    for first, last in stretches:
        is_seen[first:last] += 1
    assert is_seen.max(initial=0) <= 1
    for a, b, (_, is_quiet) in zip(edges[:-1], edges[1:], groups, strict=True):
        assert is_quiet or is_seen[a:b].all()
