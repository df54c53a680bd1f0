"""Driving: keys to poses to chunks, recordings that make the same video again, and the page in a real browser."""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import aiohttp
import av
import cv2
import numpy as np
import pytest
import torch

from worldline.train.actions import ActionConfig, poses_of_actions
from worldline.train.drive import LIVE_WINDOW, DriveConfig, main, open_world
from worldline.train.drive_recording import pixels_key, poses_of, read_recording
from worldline.train.drive_server import Drive
from worldline.train.drive_session import Control, Shown, drive_take, free_take, recording_path

ROOT = Path(__file__).parents[2]
_SPEC = importlib.util.spec_from_file_location("tiny_runs", Path(__file__).with_name("test_generate_run.py"))
assert _SPEC is not None
assert _SPEC.loader is not None
_tiny_runs = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(_tiny_runs)

torch.set_num_threads(1)
SPEED = ActionConfig(step_m=0.1, turn_deg=4.0, ease_frames=3)


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("image") / "first.png"
    cv2.imwrite(str(path), _tiny_runs.IMAGE)
    return path


def config_of(folder: Path, image: Path, chunks: tuple[int, int] | None) -> DriveConfig:
    run = _tiny_runs.saved_run(folder / "run", chunks=chunks)
    return DriveConfig(
        run=run, image=image, fov_deg=70, out=folder / "drive.mp4", steps=1, speed=SPEED, device="cpu"
    )


def frames_of(video: Path) -> np.ndarray:
    with av.open(str(video)) as container:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])


def drive_through(config: DriveConfig, keys: list[str]) -> list[Shown]:
    """Drives a chunk with each of these keys held."""
    control, shown = Control(), list[Shown]()

    def show(made: Shown) -> None:
        shown.append(made)
        if len(shown) == len(keys):
            control.end_take()
        else:
            control.hold("")
            control.next_keys(0)  # forgets what was pressed for the chunk before
            control.hold(keys[len(shown)])

    control.run(True)
    control.hold(keys[0])
    world = open_world(config)
    world = replace(world, head=replace(world.head, fps=64.0))  # seen, and so made, at eight times the speed
    assert drive_take(world, control, config.out, show) == len(keys)
    return shown


def test_a_key_tapped_between_two_chunks_counts_and_pausing_lets_go() -> None:
    control = Control()
    control.run(True)
    control.hold("dw")
    control.hold("")
    assert control.next_keys(0) == "wd"
    assert control.next_keys(0) == ""
    control.hold("i")
    assert [control.next_keys(0), control.next_keys(0)] == ["i", "i"]
    control.run(False)
    threading.Timer(0.05, control.run, [True]).start()
    before = time.monotonic()
    assert control.next_keys(before + 0.2) == ""
    assert time.monotonic() - before >= 0.2
    with pytest.raises(ValueError, match="unknown keys"):
        control.hold("wx")
    threading.Timer(0.05, control.end_take).start()
    assert control.next_keys(time.monotonic() + 60) is None
    assert control.wait_for_take()
    control.close()
    assert not control.wait_for_take()
    assert control.next_keys(0) is None


@pytest.mark.parametrize("chunks", [None, (1, 2)])
def test_a_drive_follows_its_keys_and_replays_bit_for_bit(
    tmp_path: Path, image: Path, caplog: pytest.LogCaptureFixture, chunks: tuple[int, int] | None
) -> None:
    config = config_of(tmp_path, image, chunks)
    shown = drive_through(config, ["w", "wd", "", "i"])
    sizes = [5, 4, 4, 4] if chunks is None else [1, 2, 2, 2]
    assert [len(made.frames) for made in shown] == sizes

    head, lines = read_recording(recording_path(config.out))
    assert (head.seed, head.steps, head.fps) == (0, 1, 64.0)
    assert [line.keys for line in lines] == ["w", "wd", "", "i"]
    held = [(line.keys or "none", 2 * size) for line, size in zip(lines, sizes, strict=True)]
    held[0] = (held[0][0], held[0][1] - 2)  # the first frame is where the path begins
    text = ",".join(f"{keys}-{frames}" for keys, frames in held if frames)
    np.testing.assert_array_equal(np.stack(list(poses_of(lines))), poses_of_actions(text, SPEED)[::2])
    assert [line.frames_sha256 for line in lines] == [pixels_key(made.frames) for made in shown]

    again = DriveConfig(replay=recording_path(config.out), out=tmp_path / "again.mp4")
    assert main(again) == 0
    assert len(frames_of(config.out)) == sum(sizes)
    assert again.out.read_bytes() == config.out.read_bytes()
    # Other keys do give another video: the equality above is not that of a picture that never changes.
    other = replace(config, out=tmp_path / "other.mp4")
    moved = drive_through(other, ["w", "sa"])
    assert pixels_key(moved[1].frames) != lines[1].frames_sha256
    # A recording that was tampered with is told from its digests.
    text = recording_path(config.out).read_text()
    tampered = tmp_path / "tampered.jsonl"
    tampered.write_text(text.replace(lines[1].frames_sha256, "0" * 64))
    assert main(replace(again, replay=tampered)) == 1
    assert "1 chunks differ" in caplog.text


def test_another_run_or_image_is_refused_and_a_torn_line_left_out(
    tmp_path: Path, image: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = config_of(tmp_path, image, (1, 2))
    drive_through(config, ["w", "d", ""])
    recording = recording_path(config.out)
    again = DriveConfig(replay=recording, out=tmp_path / "again.mp4")
    other_run = _tiny_runs.saved_run(tmp_path / "other", chunks=(1, 3))
    assert main(replace(again, run=other_run)) == 2
    assert "give the run it was driven with" in caplog.text
    other_image = tmp_path / "other.png"
    cv2.imwrite(str(other_image), 255 - _tiny_runs.IMAGE)
    assert main(replace(again, image=other_image)) == 2
    assert "began with another image" in caplog.text
    assert not again.out.exists()
    copied = tmp_path / "copied"
    (tmp_path / "run").rename(copied)
    assert main(again) == 2  # not where it was, and not told where it is
    recording.write_text(recording.read_text()[:-30])
    assert main(replace(again, run=copied)) == 0
    assert "torn" in caplog.text
    assert len(frames_of(again.out)) == 3
    recording.write_text('{"format": "something else"}\n')
    assert main(replace(again, run=copied)) == 2
    with pytest.raises(ValueError, match="--replay"):
        DriveConfig()


def test_looking_back_is_bounded_and_no_drive_is_written_over(tmp_path: Path, image: Path) -> None:
    config = config_of(tmp_path, image, (1, 2))
    world = open_world(config)
    assert world.generator.model.config.span.window_frames == LIVE_WINDOW == world.head.window_frames
    assert world.head.fps == 8.0
    assert open_world(replace(config, window_frames=3)).head.window_frames == 3
    assert free_take(config.out) == config.out
    recording_path(config.out).touch()
    (tmp_path / "drive-2.partial.mp4").touch()
    assert free_take(config.out).name == "drive-3.mp4"
    control = Control()
    control.run(True)
    control.close()
    assert drive_take(world, control, tmp_path / "none.mp4", lambda shown: None) == 0
    assert not list(tmp_path.glob("none*"))


def test_what_cannot_be_served_is_told(
    tmp_path: Path, image: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    config = config_of(tmp_path, image, None)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        assert main(replace(config, port=taken.getsockname()[1])) == 2
    assert "--port 0" in caplog.text
    assert main(replace(config, window_frames=3)) == 2
    assert "chunk-causal" in caplog.text
    monkeypatch.setitem(sys.modules, "aiohttp", None)
    monkeypatch.delitem(sys.modules, "worldline.train.drive_server")
    assert main(config) == 2
    assert "worldline[drive]" in caplog.text


# The page


@contextlib.contextmanager
def served(config: DriveConfig) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """The command as a process, and its address."""
    command = [sys.executable, "-m", "worldline.cli", "drive", "--port", "0", "--device", "cpu"]
    command += ["--run", str(config.run), "--image", str(config.image), "--out", str(config.out)]
    command += ["--fov-deg", "70", "--steps", "1"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line.startswith("drive at http://127.0.0.1:"), line
        yield line.split()[2].rstrip("/"), process
    finally:
        process.kill()
        process.wait()


def wait_until(condition: Callable[[], Any]) -> None:
    end = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < end, "never true"
        time.sleep(0.02)


@pytest.mark.slow
def test_keys_in_the_browser_move_the_camera_and_the_video_is_kept(
    browser: Any, tmp_path: Path, image: Path
) -> None:
    from selenium.webdriver.common.action_chains import ActionChains

    config = config_of(tmp_path, image, (1, 2))
    with served(config) as (address, process):
        browser.get(address)

        def facts() -> Any:
            return browser.execute_script("return {...document.body.dataset}")

        def place() -> list[float]:
            return [float(x) for x in facts().get("place", "0 0 0").split()]

        wait_until(lambda: facts().get("drives") == "yes")
        ActionChains(browser).key_down("w").perform()
        wait_until(lambda: place()[1] > 0.2)
        seen = int(facts()["frames"])
        ActionChains(browser).key_up("w").perform()
        view = browser.find_element("id", "view")
        ActionChains(browser).click_and_hold(view).move_by_offset(60, 0).perform()
        wait_until(lambda: place()[2] > 0.02)  # a drag to the right turns clockwise
        ActionChains(browser).release().perform()
        wait_until(lambda: int(facts()["frames"]) > seen)
        left = browser.find_element("css selector", "[data-key=j]")
        right = place()[0]
        ActionChains(browser).click_and_hold(left).perform()
        wait_until(lambda: place()[0] < right)
        ActionChains(browser).release().perform()
        for name, unit in (("latency", "ms"), ("rate", "frames/s"), ("memory", "MiB"), ("take", "drive.mp4")):
            assert unit in browser.find_element("id", name).text
        drawn = "const c = document.getElementById(arguments[0]);"
        drawn += "const d = c.getContext('2d').getImageData(0, 0, c.width, c.height).data;"
        drawn += (
            "let n = 0; for (let k = 0; k < d.length; k += 4) n += d[k] + d[k + 1] + d[k + 2] > 0; return n"
        )
        assert browser.execute_script(drawn, "path") > 50
        assert browser.execute_script(drawn, "frame") > 100
        # Space: the world stands still.
        browser.find_element("tag name", "body").send_keys(" ")
        wait_until(lambda: "paused" in browser.find_element("id", "role").text)
        time.sleep(0.4)
        lines = recording_path(config.out).read_text().count("\n")
        time.sleep(0.5)
        assert recording_path(config.out).read_text().count("\n") == lines
        # Reloading goes on with the same world, and its path.
        stood = place()
        browser.refresh()
        wait_until(lambda: facts().get("place") is not None)
        assert np.hypot(*np.subtract(place(), stood)[:2]) < 0.5
        wait_until(lambda: recording_path(config.out).read_text().count("\n") > lines)
        # Another drive begins at the first frame; the one before is whole by then.
        browser.find_element("id", "restart").click()
        wait_until(lambda: "drive-2.mp4" in browser.find_element("id", "take").text)
        assert config.out.exists()
        wait_until(lambda: recording_path(tmp_path / "drive-2.mp4").read_text().count("\n") > 2)
        assert [entry for entry in browser.get_log("browser") if entry["level"] == "SEVERE"] == []
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=20) == 0
        assert process.stdout is not None
        assert process.stdout.read().split() == [str(config.out), str(tmp_path / "drive-2.mp4")]
    for video in (config.out, tmp_path / "drive-2.mp4"):
        again = tmp_path / f"again-{video.name}"
        assert main(DriveConfig(replay=recording_path(video), out=again)) == 0
        np.testing.assert_array_equal(frames_of(again), frames_of(video))


def test_the_first_browser_drives_the_next_watches_and_others_are_kept_out(
    tmp_path: Path, image: Path
) -> None:
    config = config_of(tmp_path, image, None)
    drive = Drive(open_world(config), lambda: free_take(config.out))
    recording = recording_path(config.out)

    async def told(connection: aiohttp.ClientWebSocketResponse, kind: str, **facts: Any) -> dict[str, Any]:
        while True:
            message = await connection.receive(timeout=20)
            assert message.type in (aiohttp.WSMsgType.TEXT, aiohttp.WSMsgType.BINARY), message
            if message.type == aiohttp.WSMsgType.TEXT:
                found = json.loads(message.data)
                if found["kind"] == kind and facts.items() <= found.items():
                    return found

    async def talk() -> None:
        ready = asyncio.get_running_loop().create_future()
        serving = asyncio.create_task(drive.serve("127.0.0.1", 0, ready.set_result))
        address = (await ready).rstrip("/")
        async with aiohttp.ClientSession() as session:
            with pytest.raises(aiohttp.WSServerHandshakeError, match="403"):
                await session.ws_connect(f"{address}/ws", headers={"Origin": "http://elsewhere.example"})
            first = await session.ws_connect(f"{address}/ws")
            await told(first, "status", drives=True)
            second = await session.ws_connect(f"{address}/ws")
            await told(second, "status", drives=False, browsers=2)
            await second.send_json({"keys": "s"})  # only watches: this is not heard
            await first.send_json({"keys": "w"})
            chunk = await told(second, "chunk", keys="w")
            assert chunk["frames"] == len(chunk["places"])
            picture = await second.receive_bytes()
            decoded = cv2.imdecode(np.frombuffer(picture, np.uint8), cv2.IMREAD_COLOR)
            assert decoded.shape == (16, 32, 3)
            await second.send_json({"drive": True})
            await told(first, "status", drives=False)
            await first.send_json({"drive": True})
            await told(first, "status", drives=True)
            await first.close()
            await told(second, "status", drives=True, browsers=1)
            await told(second, "chunk", keys="")  # the one who left holds no key any more
            await second.send_json({"keys": "s"})
            await told(second, "chunk", keys="s")
            await second.send_str('{"keys": ["w"]}')
            while not second.closed:
                await second.receive(timeout=20)
            assert second.close_code == 1003

        lines = await standing()
        await asyncio.sleep(0.7)
        assert recording.read_text().count("\n") == lines  # nobody is there
        os.kill(os.getpid(), signal.SIGINT)
        await serving
        assert len(frames_of(config.out)) == 5 + 4 * (lines - 2)

    async def standing() -> int:
        """Lines of the recording once the chunk in the making is done."""
        await asyncio.sleep(0.7)
        return recording.read_text().count("\n")

    asyncio.run(talk())
    assert drive.takes == [config.out]
    assert drive.error is None
