"""The page of tables and pictures."""

from __future__ import annotations

import base64
import re

import cv2
import numpy as np

from worldline.evaluate.page import film_strips, line_plot, page_html, write_page


def test_a_page_holds_its_pictures_and_escapes_its_words(tmp_path) -> None:
    picture = np.random.default_rng(0).integers(0, 256, (6, 9, 3), dtype=np.uint8)
    rows = [{"what": "a < b", "mean": 0.123456, "seen": None, "n": 3}]
    text = page_html("T & U", ["<script>"], {"rows": rows, "empty": []}, {"cap": picture})
    assert "<script>" not in text
    assert "a &lt; b" in text
    assert "unknown" in text
    assert "0.1235" in text
    assert "http" not in text.replace("<!doctype html>", "")
    data = re.search(r"base64,([^\"]+)", text)
    assert data is not None
    read = cv2.imdecode(np.frombuffer(base64.b64decode(data[1]), np.uint8), cv2.IMREAD_COLOR)
    np.testing.assert_array_equal(read[..., ::-1], picture)
    write_page(tmp_path / "new" / "page.html", text)
    assert (tmp_path / "new" / "page.html").read_text() == text


def test_strips_show_every_frame_in_order() -> None:
    frames = np.stack([np.full((4, 5, 3), value, np.uint8) for value in (10, 20, 30)])
    strip = film_strips({"one": frames, "two": frames[::-1]}, height_px=8)
    assert strip.shape == (2 * (24 + 8), 3 * 10, 3)
    assert strip[24, [0, 10, 20], 0].tolist() == [10, 20, 30]
    assert strip[-1, [0, 10, 20], 0].tolist() == [30, 20, 10]
    plot = line_plot("loss", np.arange(5), np.arange(5.0))
    assert plot.ndim == 3
    assert len(np.unique(plot)) > 2
