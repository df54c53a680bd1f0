"""The perceptual distance: zero for equal frames, and it sees what the squared error cannot."""

import cv2
import numpy as np
import pytest

from worldline.evaluate.perceptual import perceptual_distance


@pytest.fixture(scope="module")
def frame() -> np.ndarray:
    """[96, 128, 3] edges, corners and texture."""
    rng = np.random.default_rng(3)
    picture = np.full((96, 128, 3), 110, np.uint8)
    for _ in range(40):
        corner = rng.integers(0, [110, 80])
        size = rng.integers(8, 40, 2)
        colour = rng.integers(0, 200, 3).tolist()
        cv2.rectangle(picture, corner.tolist(), (corner + size).tolist(), colour, thickness=-1)
    return picture


def distance(changed: np.ndarray, frame: np.ndarray) -> float:
    return float(perceptual_distance(changed[None, None], frame[None, None])[0])


def test_equal_frames_are_no_distance_apart(frame):
    assert distance(frame, frame) == 0


def test_it_does_not_matter_which_is_the_truth(frame):
    other = np.ascontiguousarray(frame[:, ::-1])
    assert distance(other, frame) == pytest.approx(distance(frame, other), rel=1e-5)


def test_stronger_blur_is_further_away(frame):
    by_sigma = [distance(cv2.GaussianBlur(frame, (0, 0), sigma), frame) for sigma in (0.5, 1, 2, 4)]
    assert by_sigma == sorted(by_sigma)


def test_a_blurred_frame_is_further_than_a_brighter_one_of_the_same_squared_error(frame):
    # The example that Zhang et al. open with: PSNR calls the two equal, people do not.
    blurred = cv2.GaussianBlur(frame, (0, 0), 2)
    error = np.sqrt(np.mean((blurred.astype(float) - frame) ** 2))
    brighter = np.round(frame + error).astype(np.uint8)
    assert frame.max() + error < 255
    assert distance(blurred, frame) > 3 * distance(brighter, frame)


def test_videos_average_their_frames(frame):
    soft = cv2.GaussianBlur(frame, (0, 0), 2)
    video = np.stack([frame, soft])[None]
    still = np.stack([frame, frame])[None]
    assert perceptual_distance(video, still)[0] == pytest.approx(distance(soft, frame) / 2, rel=1e-5)


def test_videos_that_do_not_pair_are_refused(frame):
    with pytest.raises(ValueError, match="do not pair"):
        perceptual_distance(frame[None, None], frame[None, None, :-1])
