"""A draft made by several decoders is the draft made by one, frame by frame."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from worldline.annotate.pieces import draft_in_pieces, split
from worldline.annotate.quiet import closed_and_quiet_groups
from worldline.annotate.video import draft_frames, probe

KINDS = {
    "B-frames": "-c:v libx264 -preset veryfast -bf 3 -g 40",
    "uneven groups, no B-frames": "-c:v libx264 -preset veryfast -bf 0 -force_key_frames 1,2.2,3.0,5.5 -g 250",
    "hevc": "-c:v libx265 -preset ultrafast -x265-params log-level=none:open-gop=0:keyint=48",
    "mpeg4": "-c:v mpeg4 -q:v 3 -g 40",
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("stretch", [(0, 200), (0, 130), (70, 200)])
def test_the_same_frames_as_from_one_decoder(
    kind: str, stretch: tuple[int, int], media, tmp_path: Path
) -> None:
    info = probe(str(media.numbered(tmp_path / "a.mp4", 200, 25.0, KINDS[kind])))
    keyframes, _ = closed_and_quiet_groups(info, max_pixels=160 * 90)
    assert keyframes[0] == 0
    pieces = draft_in_pieces(info, keyframes, max_pixels=160 * 90, gap_s=0.06, num_threads=2, stretch=stretch)
    assert pieces is not None
    alone = list(draft_frames(info, max_pixels=160 * 90, gap_s=0.06, stretch=stretch))
    for one, other in zip(alone, pieces, strict=True):
        assert (one.index, one.timestamp_s) == (other.index, other.timestamp_s)
        assert np.array_equal(one.image, other.image)


def test_pieces_make_up_the_stretch_and_start_at_keyframes_behind_other_frames() -> None:
    keyframes = [0, 10, 50, 51, 52, 100, 190, 195]
    pieces = split(keyframes, (10, 200), 2)
    assert pieces == [(10, 50), (50, 100), (100, 200)]
    assert split([0], (0, 5000), 2) == [(0, 5000)]
    pieces = split(list(range(0, 20000, 30)), (0, 20000), 2)
    assert (pieces[0][0], pieces[-1][1]) == (0, 20000)
    assert all(one[1] == other[0] for one, other in pairwise(pieces))
    assert max(last - first for first, last in pieces) <= 330


def test_a_draft_that_gains_nothing_is_not_split(media, tmp_path: Path) -> None:
    info = probe(str(media.numbered(tmp_path / "a.mp4", 60, 25.0, KINDS["B-frames"])))
    look = {"max_pixels": 160 * 90, "gap_s": 0.06}
    assert draft_in_pieces(info, [0], stretch=(0, 60), num_threads=2, **look) is None
    assert draft_in_pieces(info, [0, 30], stretch=(0, 60), num_threads=2, **look) is None
    assert draft_in_pieces(info, [0, 40], stretch=(0, 60), num_threads=1, **look) is None
    assert draft_in_pieces(info, [0, 1000], stretch=(0, 2000), num_threads=2, **look) is None


def test_no_pieces_of_containers_that_do_not_list_their_frames(media, tmp_path: Path) -> None:
    info = probe(str(media.numbered(tmp_path / "a.ts", 120, 25.0, KINDS["B-frames"])))
    assert closed_and_quiet_groups(info, max_pixels=160 * 90)[0] == []


def test_an_error_reaches_the_caller(media, tmp_path: Path) -> None:
    path = media.numbered(tmp_path / "a.mp4", 100, 25.0, KINDS["B-frames"])
    info = probe(str(path))
    frames = draft_in_pieces(info, [0, 40], max_pixels=160 * 90, gap_s=0.06, num_threads=2, stretch=(0, 100))
    assert frames is not None
    Path(path).unlink()
    with pytest.raises(FileNotFoundError):
        next(frames)
