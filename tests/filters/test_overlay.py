"""Overlay scores on a moving scene with things laid over it."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from worldline.filters.overlay import OverlayConfig, OverlayScores
from worldline.filters.seams import inset_score, seam_masks, split_score, steps
from worldline.filters.text_lines import TextLines

HEIGHT, WIDTH = 180, 320


def _world(seed=0):
    rng = np.random.default_rng(seed)
    size = (HEIGHT, WIDTH + 260)
    noise = sum(cv2.GaussianBlur(rng.standard_normal(size), (0, 0), s) * s for s in (2.0, 8.0, 30.0))
    return np.repeat(
        cv2.normalize(noise, None, 20, 230, cv2.NORM_MINMAX).astype(np.uint8)[..., None], 3, axis=2
    )


def _scores(change=lambda image, k: image, *, speed=20, looks=12, config=None):
    scores, world = OverlayScores(config or OverlayConfig(width_px=WIDTH)), _world()
    for k in range(looks):
        frame = np.ascontiguousarray(world[:, speed * k : speed * k + WIDTH])
        scores.add(change(frame, k), 0.25 * k)
    return scores.result()


def _write(image, text, x=40, y=160, scale=0.6):
    for colour, thickness in ((0, 4), (255, 1)):
        cv2.putText(
            image, text, (x, y), cv2.FONT_HERSHEY_SIMPLEX, scale, (colour,) * 3, thickness, cv2.LINE_AA
        )
    return image


def test_a_clean_moving_scene_has_nothing_over_it():
    found = _scores()
    assert found["logo_area_share"] == found["text_area_share"] == found["subtitle_share"] == 0
    assert found["split_screen"] < 0.3
    assert found["picture_in_picture"] < 0.7


def test_a_logo_is_where_it_was_put():
    def mark(image, k):
        cv2.circle(image, (285, 30), 16, (255, 255, 255), 2, cv2.LINE_AA)
        cv2.putText(image, "TV", (273, 36), cv2.FONT_HERSHEY_DUPLEX, 0.5, (255, 255, 255), 1, cv2.LINE_AA)
        return image

    found = _scores(mark)["logo_area_share"]
    assert 0.3 < found / (np.pi * 17**2 / (HEIGHT * WIDTH)) < 2.0


def test_of_a_still_scene_logos_and_insets_are_unknown():
    found = _scores(speed=0)
    assert found["logo_area_share"] is None
    assert found["picture_in_picture"] is None
    assert found["split_screen"] < 0.5


def test_a_still_scene_with_an_edge_across_may_be_split_or_not():
    def brighten(image, k):
        image[:, WIDTH // 2 :] = np.minimum(image[:, WIDTH // 2 :], 195) + 60
        return image

    assert _scores(brighten, speed=0)["split_screen"] is None
    assert _scores(brighten)["split_screen"] > 0.85


def test_a_long_edge_that_leans_is_no_split():
    """As the roof of a bus that drives by under a still camera: its edge keeps its place, but not one column."""

    def drive_by(image, k, lean_px):
        top, bottom = WIDTH // 2 + lean_px / 2, WIDTH // 2 - lean_px / 2
        corners = np.array([[top, 0], [WIDTH, 0], [WIDTH, HEIGHT], [bottom, HEIGHT]]) * 16
        cv2.fillPoly(image, [corners.astype(np.int32)], (235, 235, 235), cv2.LINE_AA, 4)
        return image

    leaning, upright = (_scores(lambda image, k, n=n: drive_by(image, k, n))["split_screen"] for n in (10, 0))
    assert upright > 0.9
    assert leaning < 0.6


def test_small_pictures_say_nothing_about_logos_and_insets():
    found = _scores(config=OverlayConfig(width_px=160))
    assert found["logo_area_share"] is found["picture_in_picture"] is None
    assert found["split_screen"] < 0.5


def test_too_few_looks_say_nothing_about_what_stays():
    found = _scores(looks=3)
    assert found["logo_area_share"] is found["split_screen"] is found["picture_in_picture"] is None


@pytest.mark.parametrize("upright", [True, False])
def test_a_split_runs_over_the_whole_picture(upright):
    other = _world(1)

    def divide(image, k):
        if upright:
            image[:, WIDTH // 2 :] = other[:, 9 * k : 9 * k + WIDTH - WIDTH // 2]
        else:
            image[HEIGHT // 2 :] = other[HEIGHT // 2 :, 9 * k : 9 * k + WIDTH]
        return image

    assert _scores(divide)["split_screen"] > 0.85


def test_an_inset_is_a_rectangle_and_a_split_is_none():
    other = _world(2)

    def put_in(image, k):
        image[20:80, 200:300] = other[20:80, 11 * k : 11 * k + 100]
        return image

    found = _scores(put_in)
    assert found["picture_in_picture"] > 0.85
    assert found["split_screen"] < 0.6


def test_seams_of_drawn_steps_are_their_length():
    luma = np.zeros((100, 140), np.float32)
    luma[:70, 60:] = 50
    upright, level = seam_masks(*steps(luma))
    assert split_score(upright, level) == pytest.approx(0.8, abs=0.12)  # 80 columns of 140, 70 rows of 100
    luma = np.zeros((100, 140), np.float32)
    luma[20:60, 30:90] = 50
    assert inset_score(*seam_masks(*steps(luma))) > 0.85
    assert inset_score(*seam_masks(*steps(np.zeros((100, 140), np.float32)))) == 0


def _drawn_inset(*boxes):
    """Score of a picture, 100 x 140, that is 50 in these boxes (top, bottom, left, right) and 0 elsewhere."""
    luma = np.zeros((100, 140), np.float32)
    for top, bottom, left, right in boxes:
        luma[top:bottom, left:right] = 50
    return inset_score(*seam_masks(*steps(luma)))


def test_an_inset_has_sides_of_its_own_that_end_at_its_corners():
    assert _drawn_inset((20, 60, 30, 90)) > 0.85
    assert _drawn_inset((20, 60, 0, 60)) > 0.85  # at the rim: three sides
    assert _drawn_inset((0, 40, 80, 140)) > 0.85  # in the corner: two
    # Short edges, as of a post, whose rectangle with the rim has no other side.
    assert _drawn_inset((20, 60, 60, 140), (0, 20, 66, 140), (60, 100, 66, 140)) < 0.5
    assert _drawn_inset((20, 60, 60, 63)) < 0.5
    # Two posts between rails that go on, as of a fence.
    rails = (20, 23, 0, 140), (58, 61, 0, 140)
    assert _drawn_inset((20, 60, 30, 33), (20, 60, 90, 93), *rails) < 0.5


def test_a_side_between_alike_pictures_may_not_show():
    """As of sky on sky; of two such sides one cannot tell."""
    outline = [(20, 60, 30, 33), (20, 23, 30, 90), (57, 60, 30, 90), (20, 60, 87, 90)]
    found = [_drawn_inset(*outline[missing:]) for missing in range(3)]
    assert min(found[:2]) > 0.8
    assert found[2] < 0.6


def test_lines_of_letters_are_boxed_and_shapes_are_not():
    finder = TextLines()
    image = np.full((HEIGHT, WIDTH, 3), 90, np.uint8)
    cv2.rectangle(image, (20, 20), (120, 32), (255, 255, 255), -1)
    cv2.circle(image, (250, 60), 30, (255, 255, 255), 3)
    assert len(finder(image)) == 0
    (wide, high), _ = cv2.getTextSize("the quick brown fox", cv2.FONT_HERSHEY_SIMPLEX, 0.6, 1)
    boxes = finder(_write(image, "the quick brown fox"))
    assert len(boxes) >= 1
    x0, y0, x1, y1 = boxes[:, 0].min(), boxes[:, 1].min(), boxes[:, 2].max(), boxes[:, 3].max()
    true = np.array([40, 160 - high, 40 + wide, 160 + 5])
    assert np.abs(np.array([x0, y0, x1, y1]) - true).max() < 12


def test_subtitles_come_and_go_and_text_that_stays_lasts():
    changing = _scores(lambda image, k: _write(image, f"word {k:03d} of a sentence") if k % 4 < 2 else image)
    assert changing["subtitle_share"] == pytest.approx(0.5, abs=0.2)
    lasting = _scores(lambda image, k: _write(image, "LIVE FROM THE MARKET", y=30))
    assert lasting["text_persistence"] == 1.0
    assert lasting["subtitle_share"] == 0
    assert lasting["text_area_share"] > 0.01
    assert lasting["text_backend"] == "edges"


def test_without_a_text_backend_text_is_unknown():
    found = _scores(config=OverlayConfig(text="none"))
    assert found["text_area_share"] is found["text_backend"] is found["subtitle_share"] is None


@pytest.mark.parametrize(
    "settings", [{"text": "nobody"}, {"width_px": 10}, {"min_looks": 1}, {"look_gap_s": -1.0}]
)
def test_senseless_settings_are_refused(settings):
    with pytest.raises(ValueError, match=r"nobody|width_px"):
        OverlayConfig(**settings)


@pytest.mark.slow
def test_rapidocr_boxes_the_words():
    pytest.importorskip("rapidocr")
    from worldline.annotate.backends.rapid_text import RapidText

    image = np.full((240, 480, 3), 90, np.uint8)
    finder = RapidText()
    assert finder(image).shape == (0, 4)
    (wide, high), _ = cv2.getTextSize("WORLD LINE", cv2.FONT_HERSHEY_SIMPLEX, 1.5, 3)
    cv2.putText(image, "WORLD LINE", (60, 140), cv2.FONT_HERSHEY_SIMPLEX, 1.5, (255,) * 3, 3, cv2.LINE_AA)
    x0, y0, x1, y1 = finder(image)[0]
    assert np.abs(np.array([x0, y0, x1, y1]) - (60, 140 - high, 60 + wide, 140)).max() < 15
