"""Re-localisation on exact geometry: a clip whose tracks all end in the middle and whose places look the same."""

from __future__ import annotations

import numpy as np

from worldline.annotate.camera import Intrinsics, invert, project, rotation_from_rotvec, transform, umeyama
from worldline.annotate.features import FeaturesConfig, load_matcher
from worldline.annotate.mapper import Mapper, MappingConfig
from worldline.annotate.mapping import map_keyframes
from worldline.annotate.relocalise import RelocaliseConfig, relocalise
from worldline.annotate.tracks import Keyframe, Tracks

CAMERA = Intrinsics(fxfycxcy_px=np.array([500.0, 500.0, 320.0, 180.0]), width=640, height=360)
NUM_KF, NUM_POINTS, LOST_AT = 16, 250, 9


def _clip(*, alike: bool) -> tuple[Tracks, np.ndarray]:
    """A walk along a cloud; from keyframe LOST_AT on every point has a new track, whose descriptor is that of the old
    one but for a tenth of its bits if `alike`, else any. And the true centres [K, 3]."""
    rng = np.random.default_rng(2)
    points = rng.uniform([-4, -1.5, 4], [4, 1.5, 9], (NUM_POINTS, 3))
    along = np.linspace(-1, 1, NUM_KF)
    centres = np.stack([along, 0.1 * np.sin(4 * along), 0.2 * along**2], axis=1)
    rotation = rotation_from_rotvec(np.stack([0 * along, -0.1 * along, 0 * along], axis=1))
    cam_from_world = np.concatenate([rotation, -rotation @ centres[:, :, None]], axis=2)
    pixels = project(transform(cam_from_world, np.broadcast_to(points, (NUM_KF, NUM_POINTS, 3))), CAMERA)
    pixels += 0.1 * rng.standard_normal(pixels.shape)
    seen = np.all((pixels > 0) & (pixels < [640, 360]), axis=2)
    frame_idx, point_idx = np.nonzero(seen)
    track_idx = point_idx + NUM_POINTS * (frame_idx >= LOST_AT)
    bits = rng.random((NUM_POINTS, 256)) < 0.5
    flipped = rng.random((NUM_POINTS, 256)) < (0.1 if alike else 0.5)
    descriptors = np.packbits(np.concatenate([bits, bits ^ flipped]), axis=1)
    keyframes = []
    for k in range(NUM_KF):
        own = track_idx[frame_idx == k]
        blank = np.zeros((len(own), 3), np.uint8)
        grey = np.zeros((360, 640), np.uint8)
        keyframes.append(
            Keyframe(frame_idx=k, track_idx=own, descriptors=descriptors[own], rgb=blank, grey=grey)
        )
    tracks = Tracks(
        num_frames=NUM_KF,
        width=640,
        height=360,
        num_tracks=2 * NUM_POINTS,
        frame_idx=frame_idx.astype(np.int32),
        track_idx=track_idx.astype(np.int32),
        xy_px=pixels[seen].astype(np.float32),
        keyframes=tuple(keyframes),
        motion_px=np.zeros(NUM_KF),
        is_lost=np.arange(NUM_KF) == LOST_AT,
    )
    return tracks, centres


def _mapped(tracks: Tracks) -> Mapper:
    config = MappingConfig()
    mapper = Mapper.of(map_keyframes(tracks, config, CAMERA, is_known=True), config, tracks, known_focal=True)
    assert 3 <= mapper.map.is_posed.sum() < NUM_KF
    return mapper


def test_a_place_seen_again_joins_both_sides_of_the_gap() -> None:
    tracks, centres = _clip(alike=True)
    mapper = _mapped(tracks)
    assert relocalise(mapper, tracks, RelocaliseConfig(), load_matcher(FeaturesConfig()))
    assert mapper.map.is_posed.all()
    found = invert(mapper.map.cam_from_world)[:, :, 3]
    np.testing.assert_allclose(umeyama(centres, found).points(found), centres, atol=5e-3)


def test_another_place_is_not_taken_for_the_first() -> None:
    tracks, _ = _clip(alike=False)
    mapper = _mapped(tracks)
    before = mapper.map.is_posed.copy()
    assert not relocalise(mapper, tracks, RelocaliseConfig(), load_matcher(FeaturesConfig()))
    np.testing.assert_array_equal(mapper.map.is_posed, before)
