"""The report in a real headless browser: load, drag, filter, open a clip; and what it holds without one."""

from __future__ import annotations

import json
import re
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from worldline.datasets.decisions import RulesConfig, decide_dataset
from worldline.datasets.previews import PreviewConfig, preview_strip
from worldline.datasets.schema import TRAJECTORIES, VIDEOS
from worldline.evaluate.report import ReportConfig, main, report_content
from worldline.filters.rule_sets import load_rules

webdriver = pytest.importorskip("selenium.webdriver", reason="the page is tested with selenium")
KNOWN_RULES = RulesConfig(rules="sana_wm", without=("dover", "num_entities"))


def _rows(count: int, num_frames: int) -> list[dict[str, Any]]:
    """Clips with random scores, some unknown, some failed; circles of radius k + 1 at constant speed."""
    rng, rows = np.random.default_rng(0), []
    for k in range(count):
        angle = np.linspace(0, 1, num_frames)
        poses = np.tile(np.eye(3, 4), (num_frames, 1, 1))
        poses[:, 0, 3], poses[:, 2, 3] = (k + 1) * np.cos(angle), (k + 1) * np.sin(angle)
        row: dict[str, Any] = {
            "clip_id": f"{k:08d}-clip", "video_id": f"{k:032d}", "tool_version": "t", "config_hash": "h",
            "source": ["sekai_walking", "sekai_game", "</script><b>odd", None][k % 4],
            "licence": ["CC0-1.0", "CC-BY-NC-4.0", None][k % 3], "path": f"/nowhere/{k}.mp4",
            "start_s": 0.0, "end_s": 8.0, "status": "ok", "scale_status": "metric", "num_frames": num_frames,
            "timestamps_s": np.linspace(0, 8, num_frames).tolist(),
            "world_from_cam": poses.reshape(-1).tolist(), "sigma_translation": [0.02] * num_frames,
            "vmaf_motion": float(rng.gamma(2, 8)), "flow_576x320_px": float(rng.gamma(2, 20)),
            "saturation": 90.0, "num_cuts": int(rng.integers(0, 3)), "fov_x_deg": float(rng.normal(70, 25)),
            "fov_y_deg": 45.0, "focal_mismatch": 0.0, "depth_scale_variation": 0.1, "luminance": 100.0,
        }  # fmt: skip
        if k % 17 == 5:
            row |= {"vmaf_motion": None}
        if k % 29 == 7:
            row |= {
                "status": "failed",
                "reason": "geometry: it broke",
                "replay": f"worldline annotate --clip {k}",
            }
            row |= {"world_from_cam": None, "timestamps_s": None, "sigma_translation": None}
        rows.append(row)
    return rows


def _folder(root: Path, rows: list[dict[str, Any]]) -> Path:
    for name in ("trajectories", "videos"):
        (root / name).mkdir(parents=True)
    pq.write_table(pa.Table.from_pylist(rows, schema=TRAJECTORIES), root / "trajectories" / "00.parquet")
    video = {"video_id": "v", "path": "/nowhere/torn.mp4", "status": "failed", "reason": "probe: torn"}
    video |= {"replay": "worldline annotate torn.mp4", "tool_version": "t", "config_hash": "h"}
    pq.write_table(pa.Table.from_pylist([video], schema=VIDEOS), root / "videos" / "00.parquet")
    return root


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return _folder(tmp_path_factory.mktemp("report") / "d", _rows(200, 60))


@pytest.fixture(scope="module")
def page(dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("page") / "r.html"
    assert main(ReportConfig(dataset=dataset, out=out, rules=KNOWN_RULES)) == 0
    return out


@pytest.fixture
def opened(browser: Any, page: Path) -> Any:
    browser.get(page.as_uri())
    _wait(
        browser,
        "return document.body.dataset.ready === 'yes' && document.querySelectorAll('.card').length > 0",
    )
    return browser


def _wait(browser: Any, condition: str) -> None:
    end = time.monotonic() + 20
    while not browser.execute_script(condition):
        assert time.monotonic() < end, f"never true: {condition}"
        time.sleep(0.02)


def _kept(browser: Any) -> int:
    # Recounted with the next picture.
    browser.execute_async_script(
        "const done = arguments[0]; requestAnimationFrame(() => requestAnimationFrame(done));"
    )
    return int(browser.execute_script("return document.getElementById('count').dataset.kept"))


def _select(browser: Any, name: str, value: str) -> None:
    browser.execute_script(
        "const s = document.getElementById(arguments[0]); s.value = arguments[1]; s.dispatchEvent(new Event('change'))",
        name, value,
    )  # fmt: skip


def test_page_counts_what_decide_counts(opened: Any, dataset: Path) -> None:
    table = decide_dataset(dataset, KNOWN_RULES.rule_set())
    expected = table["reason"].to_pylist()
    assert _kept(opened) == expected.count(None)
    found = opened.execute_script("return Array.from({length: count}, (_, i) => reasonOf(i))")
    assert found == [reason or "kept" for reason in expected]
    assert opened.get_log("browser") == []
    assert not opened.find_elements("css selector", "body > b")


def test_dragging_an_end_recounts(opened: Any, dataset: Path, tmp_path: Path) -> None:
    from selenium.webdriver.common.action_chains import ActionChains

    before = _kept(opened)
    handle = opened.find_element("css selector", ".chart[data-column=fov_x_deg] .handle[data-end=min]")
    opened.execute_script("arguments[0].scrollIntoView({block: 'center'})", handle)
    ActionChains(opened).click_and_hold(handle).move_by_offset(80, 0).release().perform()
    after = _kept(opened)
    limit = opened.execute_script("return profiles[''].find((rule) => rule.column === 'fov_x_deg').min")
    assert limit > 26
    assert after < before
    # The saved rules, asked of the dataset, give the page's count.
    opened.find_element("id", "save").click()
    text = opened.find_element("id", "toml").text
    (tmp_path / "rules.toml").write_text(text)
    reasons = decide_dataset(dataset, load_rules(str(tmp_path / "rules.toml")))["reason"].to_pylist()
    assert reasons.count(None) == after
    assert opened.execute_script("return Array.from({length: count}, (_, i) => reasonOf(i))") == [
        r or "kept" for r in reasons
    ]


def test_arrow_keys_move_an_end_and_reset_undoes(opened: Any) -> None:
    before = _kept(opened)
    handle = opened.find_element("css selector", ".chart[data-column=vmaf_motion] .handle[data-end=max]")
    for _ in range(30):
        handle.send_keys(webdriver.Keys.ARROW_LEFT)
    assert _kept(opened) < before
    opened.find_element("id", "reset").click()
    assert _kept(opened) == before


def test_filters_and_pages(opened: Any) -> None:
    shown = lambda: int(opened.execute_script("return document.getElementById('page').dataset.clips"))  # noqa: E731
    assert shown() == 200
    _select(opened, "source", "sekai_game")
    assert shown() == 50
    _select(opened, "source", "</script><b>odd")
    assert shown() == 50
    _select(opened, "source", "unknown")
    _select(opened, "licence", "CC0-1.0")
    assert shown() == len([k for k in range(200) if k % 4 == 3 and k % 3 == 0])
    _select(opened, "source", "")
    _select(opened, "licence", "")
    _select(opened, "reason", "status")
    assert shown() == len([k for k in range(200) if k % 29 == 7])
    _select(opened, "reason", "")
    opened.find_element("tag name", "body").send_keys("y")
    assert shown() == _kept(opened)
    opened.find_element("tag name", "body").send_keys("a")
    assert len(opened.find_elements("css selector", ".card")) == 24
    opened.find_element("tag name", "body").send_keys("n")
    assert opened.find_element("css selector", ".card").get_attribute("data-clip") == "24"
    _select(opened, "sort", "-vmaf_motion")
    values = opened.execute_script(
        "return state.order.map((i) => columns.vmaf_motion.values[i]).filter((v) => v !== null)"
    )
    assert values == sorted(values, reverse=True)


def test_a_clip_opens_by_keyboard_with_its_path(opened: Any, dataset: Path) -> None:
    body = opened.find_element("tag name", "body")
    body.send_keys("j")
    body.send_keys("j")
    opened.switch_to.active_element.send_keys(webdriver.Keys.ENTER)
    assert opened.find_element("id", "clip").get_attribute("data-clip") == "1"
    path = np.array(opened.execute_script("return pathOf(1)"))
    assert path.shape == (32, 5)
    np.testing.assert_allclose(np.hypot(path[:, 0], path[:, 2]), 2, rtol=1e-5)
    np.testing.assert_allclose(path[:, 3], 2 / 8, rtol=1e-3)  # an arc of 1 rad at radius 2 m in 8 s
    np.testing.assert_allclose(path[:, 4], 0.02, rtol=1e-5)
    drawn = "const c = document.getElementById('path'); const d = c.getContext('2d').getImageData(0, 0, c.width, c.height).data;"
    drawn += "let n = 0; for (let k = 3; k < d.length; k += 4) n += d[k] > 0; return n"
    assert opened.execute_script(drawn) > 200
    assert "vmaf_motion" in opened.find_element("id", "clip-content").get_attribute("textContent")
    opened.switch_to.active_element.send_keys(webdriver.Keys.ESCAPE)
    assert opened.find_element("id", "clip").get_attribute("open") is None


def test_failures_name_their_replay(opened: Any) -> None:
    text = opened.find_element("id", "failures").text
    assert "worldline annotate torn.mp4" in text
    assert "worldline annotate --clip 7" in text


def test_page_refers_to_nothing_outside(page: Path) -> None:
    text = page.read_text()
    assert not re.findall(r"""(?:src|href)\s*=\s*["']?(?:https?:)?//""", text)
    assert "http://" not in text
    assert "https://" not in text
    assert "default-src 'none'" in text


def test_large_tables_are_sampled_evenly(dataset: Path) -> None:
    config = ReportConfig(dataset=dataset, max_clips=50)
    content = report_content(config, config.rules.rule_set())
    assert (content["num_clips"], content["num_shown"]) == (200, 50)
    assert content["columns"]["clip_id"]["words"] == [f"{k:08d}-clip" for k in range(0, 200, 4)]
    json.dumps(content, allow_nan=False)


def test_preview_shows_the_frames_at_its_times(media: Any, tmp_path: Path) -> None:
    """The pictures tell their frame's number: the first at or after (k + 1/2) / 3 of the clip."""
    import cv2

    video = media.numbered(tmp_path / "v.mp4", count=60, fps=30, seed=0)
    config = PreviewConfig(pictures=3, height_px=96, quality=95)
    strip = preview_strip({"path": str(video), "start_s": 0.0, "end_s": 2.0}, config)
    assert strip is not None
    image = cv2.imdecode(np.frombuffer(strip, np.uint8), cv2.IMREAD_COLOR)[:, :, ::-1]
    assert image.shape == (96, 480, 3)
    assert [media.number_of(part) for part in np.split(image, 3, axis=1)] == [10, 30, 50]
    assert preview_strip({"path": str(tmp_path / "gone.mp4"), "start_s": 0.0, "end_s": 2.0}, config) is None
