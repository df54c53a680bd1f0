"""The web side of a drive: one page, one websocket a browser, frames as JPEG.

From the browser, JSON: {"keys": "wd"} all keys that are down, {"paused": true}, {"restart": true}, {"drive": true} to
take the wheel. To the browser, JSON with a "kind": "hello", "status", and "chunk", which is followed by its frames.

The first browser drives and the others watch; when it leaves, the next one drives. While nobody is there the world
stands still, and goes on where it stood.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import signal
import threading
from collections import deque
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from aiohttp import WSCloseCode, WSMsgType, web

from worldline.train.drive_session import Control, Shown, World, drive_take, recording_path

logger = logging.getLogger(__name__)

PAGE = {
    "/": ("drive_page.html", "text/html"),
    "/drive_page.css": ("drive_page.css", "text/css"),
    "/drive_page.js": ("drive_page.js", "text/javascript"),
}
CONTENT_POLICY = "default-src 'none'; connect-src 'self'; script-src 'self'; style-src 'self'; img-src data:"
JPEG_QUALITY = 92
MAX_PATH = 4000
"""Places of the path that a browser which comes later is told."""
MAX_WAITING = 4
"""Chunks kept for a browser that reads slowly; older ones are dropped."""
MAX_MESSAGE_BYTES = 1024
"""Of a browser's message."""

Message = list[str | bytes]
"""Sent together, or not at all."""


def serve(
    world: World, next_take: Callable[[], Path], *, host: str, port: int, on_ready: Callable[[str], None]
) -> list[Path]:
    """Serves the page until Ctrl-C or SIGTERM; the videos made, in order.

    Raises ValueError where the address cannot be served at, and whatever making the frames raised.

    Args:
        world: what is driven through.
        next_take: names the video of the next drive.
        host, port: address; port 0 takes a free one.
        on_ready: told the page's address once it is served.
    """
    drive = Drive(world, next_take)
    asyncio.run(drive.serve(host, port, on_ready))
    if drive.error is not None:
        raise drive.error
    return drive.takes


class Browser:
    """One open page, and what it is still to be sent."""

    def __init__(self, socket: web.WebSocketResponse) -> None:
        self.socket = socket
        self._facts: deque[Message] = deque()
        self._chunks: deque[Message] = deque(maxlen=MAX_WAITING)
        self._has_some = asyncio.Event()

    def put(self, message: Message, *, is_chunk: bool = False) -> None:
        """Of chunks the oldest is dropped where too many wait."""
        (self._chunks if is_chunk else self._facts).append(message)
        self._has_some.set()

    def forget_chunks(self) -> None:
        self._chunks.clear()

    async def send_all(self) -> None:
        """Sends what is put, until the connection ends."""
        with contextlib.suppress(ConnectionError):
            while True:
                await self._has_some.wait()
                self._has_some.clear()
                while self._facts or self._chunks:
                    for part in (self._facts or self._chunks).popleft():
                        await self._send(part)

    async def _send(self, part: str | bytes) -> None:
        if isinstance(part, str):
            await self.socket.send_str(part)
        else:
            await self.socket.send_bytes(part)


class Drive:
    """The browsers, and the thread that makes the world."""

    def __init__(self, world: World, next_take: Callable[[], Path]) -> None:
        self.takes: list[Path] = []
        self.error: BaseException | None = None
        self._world, self._next_take, self._control = world, next_take, Control()
        self._browsers: list[Browser] = []
        self._driver: Browser | None = None
        self._path: deque[list[float]] = deque(maxlen=MAX_PATH)
        self._newest = _jpeg(world.image_rgb)
        self._take = ""

    async def serve(self, host: str, port: int, on_ready: Callable[[str], None]) -> None:
        """Until SIGINT or SIGTERM, or until making frames fails."""
        stop, loop = asyncio.Event(), asyncio.get_running_loop()
        app = web.Application()
        app.router.add_get("/ws", self._browser)
        for address in PAGE:
            app.router.add_get(address, _page_file)
        runner = web.AppRunner(app, access_log=None, shutdown_timeout=1.0)
        await runner.setup()
        try:
            await web.TCPSite(runner, host, port).start()
        except OSError as error:
            await runner.cleanup()
            raise ValueError(f"cannot serve at {host}:{port}: {error}; --port 0 takes a free one") from error
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, stop.set)
        worker = threading.Thread(target=self._make_takes, args=(loop, stop), name="world", daemon=True)
        worker.start()
        on_ready(f"http://{runner.addresses[0][0]}:{runner.addresses[0][1]}/")
        try:
            await stop.wait()
        finally:
            for number in (signal.SIGINT, signal.SIGTERM):
                loop.remove_signal_handler(number)  # again, and it does not wait for the chunk in the making
            self._control.close()
            for browser in list(self._browsers):
                await browser.socket.close(code=WSCloseCode.GOING_AWAY, message=b"the drive has ended")
            while worker.is_alive():
                await asyncio.sleep(0.02)
            await runner.cleanup()

    # The thread that makes the world

    def _make_takes(self, loop: asyncio.AbstractEventLoop, stop: asyncio.Event) -> None:
        def show(shown: Shown) -> None:
            pictures = [_jpeg(frame) for frame in shown.frames]
            loop.call_soon_threadsafe(self._show, shown, pictures)

        try:
            while self._control.wait_for_take():
                video = self._next_take()
                loop.call_soon_threadsafe(self._begin_take, video.name)
                count = drive_take(self._world, self._control, video, show)
                if count:
                    self.takes.append(video)
                    logger.info("%s and %s: %d chunks", video, recording_path(video).name, count)
        except BaseException as error:
            self.error = error
        finally:
            loop.call_soon_threadsafe(stop.set)

    # What it tells the browsers, in the server's thread

    def _begin_take(self, name: str) -> None:
        self._take, self._newest = name, _jpeg(self._world.image_rgb)
        self._path.clear()
        for browser in self._browsers:
            browser.forget_chunks()
            browser.put(self._hello())

    def _show(self, shown: Shown, pictures: list[bytes]) -> None:
        places = [_place(pose) for pose in np.array(shown.chunk.poses)]
        self._path.extend(places)
        self._newest = pictures[-1]
        facts = {
            "kind": "chunk",
            "chunk": shown.chunk.chunk,
            "keys": shown.chunk.keys,
            "latency_s": shown.chunk.latency_s,
            "frames": len(pictures),
            "frames_per_s": shown.frames_per_s,
            "memory_bytes": shown.memory_bytes,
            "places": places,
        }
        for browser in self._browsers:
            browser.put([json.dumps(facts), *pictures], is_chunk=True)

    def _hello(self) -> Message:
        facts = {
            "kind": "hello",
            "fps": self._world.head.fps,
            "take": self._take,
            "path": list(self._path),
        }
        return [json.dumps(facts), self._newest]

    def _tell_status(self) -> None:
        for browser in self._browsers:
            facts = {"kind": "status", "drives": browser is self._driver, "browsers": len(self._browsers)}
            browser.put([json.dumps(facts)])

    # What they tell

    async def _browser(self, request: web.Request) -> web.WebSocketResponse:
        # Any page of the web may open a websocket to this machine: only this server's own may drive.
        if request.headers.get("Origin", f"http://{request.host}") != f"http://{request.host}":
            raise web.HTTPForbidden(text="this page belongs to another server")
        socket = web.WebSocketResponse(timeout=1.0, heartbeat=5.0, max_msg_size=MAX_MESSAGE_BYTES)
        await socket.prepare(request)
        browser = Browser(socket)
        browser.put(self._hello())
        async with self._joined(browser):
            async for message in socket:
                if message.type != WSMsgType.TEXT:
                    continue
                try:
                    self._obey(browser, json.loads(message.data))
                except (ValueError, TypeError, AttributeError) as error:
                    await socket.close(code=WSCloseCode.UNSUPPORTED_DATA, message=str(error)[:100].encode())
        return socket

    @contextlib.asynccontextmanager
    async def _joined(self, browser: Browser) -> AsyncIterator[None]:
        self._browsers.append(browser)
        self._seat(self._driver or browser)
        sender = asyncio.create_task(browser.send_all())
        try:
            yield
        finally:
            sender.cancel()
            self._browsers.remove(browser)
            if browser is self._driver:
                self._seat(self._browsers[0] if self._browsers else None)
            else:
                self._tell_status()

    def _seat(self, driver: Browser | None) -> None:
        """Puts a browser at the wheel; the world stands still without one."""
        if driver is not self._driver:
            self._control.run(False)  # lets the keys of the one before go
            self._control.run(driver is not None)
        self._driver = driver
        self._tell_status()

    def _obey(self, browser: Browser, wish: dict[str, Any]) -> None:
        if wish.get("drive"):
            self._seat(browser)
        if browser is not self._driver:
            return
        if "paused" in wish:
            self._control.run(not wish["paused"])
        if "keys" in wish:
            self._control.hold(str(wish["keys"]))
        if wish.get("restart"):
            self._control.end_take()


async def _page_file(request: web.Request) -> web.Response:
    name, kind = PAGE[request.path]
    text = (Path(__file__).parent / name).read_text(encoding="utf-8")
    headers = {"Content-Security-Policy": CONTENT_POLICY, "Cache-Control": "no-store"}
    return web.Response(text=text, content_type=kind, headers=headers)


def _place(first_from_cam: np.ndarray) -> list[float]:
    """Right and ahead in metres, and the heading in radians, clockwise from above."""
    heading = np.arctan2(first_from_cam[0, 2], first_from_cam[2, 2])
    return [round(float(x), 4) for x in (first_from_cam[0, 3], first_from_cam[2, 3], heading)]


def _jpeg(frame_rgb: np.ndarray) -> bytes:
    _, data = cv2.imencode(".jpg", frame_rgb[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])
    return data.tobytes()
