"""Lists as others publish them, and downloads from a local server that stalls, breaks, truncates and says no."""

from __future__ import annotations

import hashlib
import json
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from worldline.annotate.video import probe
from worldline.datasets.fetch import FetchConfig, fetch, main
from worldline.datasets.fetch_http import FetchFailed, HttpConfig, Pace, download
from worldline.datasets.fetch_list import read_list

QUICK = HttpConfig(tries=4, stall_s=0.4, wait_s=0.01)


class _Server(ThreadingHTTPServer):
    """Gives `data` under /<manner>/<anything>; a manner shows on the first request, its cure on the next."""

    def __init__(self, data: bytes) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.data, self.requests, self.release = data, [], threading.Event()
        self.etag = '"one"'

    def address(self, path: str) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/{path}"

    def asked(self, path: str) -> list[str | None]:
        """The Range header of each request for a path."""
        return [asked for name, asked in self.requests if name == "/" + path]


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server

    def log_message(self, *args: Any) -> None:
        pass

    def do_GET(self) -> None:
        server, manner = self.server, self.path.split("/")[1]
        server.requests.append((self.path, self.headers.get("Range")))
        is_first = len(server.asked(self.path[1:])) == 1
        if manner == "gone" or (manner == "busy" and is_first):
            self.send_response(404 if manner == "gone" else 503)
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        start = 0
        asked = self.headers.get("Range")
        if asked and manner != "deaf" and self.headers.get("If-Range") == server.etag:
            start = int(asked.removeprefix("bytes=").removesuffix("-"))
        data = server.data[start:]
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(server.data) - 1}/{len(server.data)}")
        self.send_header("Content-Length", str(len(data)))
        self.send_header("ETag", server.etag)
        self.end_headers()
        if is_first and manner in ("truncated", "stalled", "deaf", "changed"):
            self.wfile.write(data[: len(data) // 2])
            self.wfile.flush()
            if manner == "stalled":
                server.release.wait(5)
            if manner == "changed":
                server.etag, server.data = '"two"', bytes(reversed(server.data))
            self.close_connection = True
            return
        self.wfile.write(data)


@pytest.fixture
def server(media: Any, tmp_path: Path) -> Iterator[_Server]:
    video = media.numbered(tmp_path / "served.mp4", count=120, fps=30, seed=0)
    running = _Server(video.read_bytes())
    thread = threading.Thread(target=running.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    yield running
    running.release.set()
    running.shutdown()
    thread.join()
    running.server_close()


def _write_csv(path: Path, *lines: str) -> Path:
    path.write_text("\n".join(lines) + "\n")
    return path


# Lists


def test_lists_as_they_are_published(tmp_path: Path) -> None:
    mira = _write_csv(
        tmp_path / "mira.csv",
        "clip_id,source,video_id,video_url,width,timestamp,dense_caption",
        "7.0001,youtube,aIPu1xGNbhc,https://www.youtube.com/watch?v=aIPu1xGNbhc,1280,\"['0:00:08.500', '0:01:10.250']\",\"a, b\"",
    )
    (order,) = read_list(mira, licence="unknown terms")
    assert (order.name, order.url) == ("7.0001", "https://www.youtube.com/watch?v=aIPu1xGNbhc")
    assert (order.start_s, order.end_s, order.source, order.licence) == (
        8.5,
        70.25,
        "youtube",
        "unknown terms",
    )
    sekai = _write_csv(tmp_path / "sekai.csv", "videoFile,location", "-0DjQ3h2LLU_0014060_0015860.mp4,Paris")
    (order,) = read_list(sekai, source="sekai_walking")
    assert order.url == "https://www.youtube.com/watch?v=-0DjQ3h2LLU"
    assert order.end_s is not None
    assert order.start_s == pytest.approx(14060 / 30)
    assert order.end_s - order.start_s == pytest.approx(60)
    unnamed = _write_csv(
        tmp_path / "first_column.csv", "clip,location", "-0DjQ3h2LLU_0014060_0015860.webm,Paris"
    )
    assert [*read_list(unnamed, source="sekai_walking")] == [order]
    rows = [{"id": "a/b c", "Video ID": "aIPu1xGNbhc", "timestamp": [12.0, 15.5], "license": "CC-BY-4.0"}]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "spatial.parquet")
    (order,) = read_list(tmp_path / "spatial.parquet")
    assert (order.name, order.start_s, order.end_s, order.licence) == ("a_b_c", 12.0, 15.5, "CC-BY-4.0")


def test_lists_whose_spans_are_frames(tmp_path: Path) -> None:
    """Rows in the formats of MiraData's v0 sample and SpatialVID's clips_info.csv."""
    mira = _write_csv(
        tmp_path / "mira_v0.csv",
        "index,video_id,start_frame,end_frame,dense_caption,fps,start_timestep,end_timestep,,",
        '000000008563_wwqUCcOZBT0-000024,wwqUCcOZBT0,66197,69074,"a, b",23.97602398,0:46:01,0:48:01,,',
        '000000008563_wwqUCcOZBT0-000025,wwqUCcOZBT0,66197,69074,"a, b",0,0:46:01,0:48:01,,',
        '000000008563_wwqUCcOZBT0-000026,wwqUCcOZBT0,,,"a, b",,0:46:01,0:48:01,,',
    )
    order, broken, timed = read_list(mira)
    assert order.name == "000000008563_wwqUCcOZBT0-000024"
    assert order.url == "https://www.youtube.com/watch?v=wwqUCcOZBT0"
    assert order.start_s == pytest.approx(66197 * 1001 / 24000, abs=1e-3)
    assert order.end_s == pytest.approx(69074 * 1001 / 24000, abs=1e-3)
    assert broken.problem is not None
    assert "frame rate" in broken.problem
    assert (timed.start_s, timed.end_s, timed.problem) == (2761.0, 2881.0, None)
    spatial = _write_csv(
        tmp_path / "clips_info.csv",
        "video_path,id,num_frames,height,width,fps,timestamp_start,timestamp_end,frame_start,frame_end,id_ori",
        "test/fY_KvM9ZAvA.webm,fY_KvM9ZAvA_1,376,720,1280,25.0,00:00:04.240,00:00:19.280,106,482,fY_KvM9ZAvA",
    )
    (order,) = read_list(spatial)
    assert (order.name, order.url) == ("fY_KvM9ZAvA_1", "https://www.youtube.com/watch?v=fY_KvM9ZAvA")
    assert (order.start_s, order.end_s) == (pytest.approx(4.24), pytest.approx(19.28))
    assert order.problem is None


def test_rows_that_make_no_sense_say_why(tmp_path: Path) -> None:
    path = _write_csv(
        tmp_path / "l.csv", "url,start,end,sha256", "http://x/a.mp4,5,3,", "ftp://x/a.mp4,,,", ",,,",
        "http://x/a.mp4,soon,,", "http://x/a.mp4,,,abc", "http://x/a.mp4,1:02:03.5,,",
    )  # fmt: skip
    orders = list(read_list(path))
    words = ["is empty", "ftp scheme", "address: none", "soon", "64 hex", None]
    for order, word in zip(orders, words, strict=True):
        assert order.problem is None if word is None else word in str(order.problem)
    assert orders[-1].start_s == 3723.5
    with pytest.raises(ValueError, match="no column of addresses"):
        list(read_list(_write_csv(tmp_path / "m.csv", "title,length", "a,3")))


# One file


@pytest.mark.parametrize("manner", ["good", "truncated", "stalled", "busy", "deaf"])
def test_whole_file_whatever_the_server_does(server: _Server, tmp_path: Path, manner: str) -> None:
    digest = download(server.address(f"{manner}/v.mp4"), tmp_path / "v.mp4", QUICK, Pace(QUICK))
    assert (tmp_path / "v.mp4").read_bytes() == server.data
    assert digest == hashlib.sha256(server.data).hexdigest()
    asked = server.asked(f"{manner}/v.mp4")
    if manner in ("truncated", "stalled"):
        assert asked == [None, f"bytes={len(server.data) // 2}-"]
    assert sorted(path.name for path in tmp_path.glob("v.*")) == ["v.mp4"]


def test_a_file_that_changed_meanwhile_is_begun_anew(server: _Server, tmp_path: Path) -> None:
    """Two halves of two files would have the right length."""
    download(server.address("changed/v.mp4"), tmp_path / "v.mp4", QUICK, Pace(QUICK))
    assert (tmp_path / "v.mp4").read_bytes() == server.data


def test_what_can_never_work_is_asked_once(server: _Server, tmp_path: Path) -> None:
    with pytest.raises(FetchFailed, match="http 404"):
        download(server.address("gone/v.mp4"), tmp_path / "v.mp4", QUICK, Pace(QUICK))
    assert len(server.requests) == 1
    with pytest.raises(FetchFailed, match="checksum"):
        download(server.address("good/v.mp4"), tmp_path / "v.mp4", QUICK, Pace(QUICK), "0" * 64)
    small = HttpConfig(max_file_gb=1e-6)
    with pytest.raises(FetchFailed, match="too large"):
        download(server.address("good/v.mp4"), tmp_path / "v.mp4", small, Pace(small))
    with pytest.raises(FetchFailed, match="connection"):
        download("http://127.0.0.1:9/v.mp4", tmp_path / "v.mp4", QUICK, Pace(QUICK))
    assert not (tmp_path / "v.mp4").exists()


def test_rate_and_gap_are_held() -> None:
    """Lower bounds alone: a busy machine is only slower."""
    pace, start = Pace(HttpConfig(max_mb_s=1.0, request_gap_s=0.1)), time.monotonic()
    for _ in range(10):
        pace.received(60_000)
    assert time.monotonic() - start > 0.3  # 0.6 s of bytes less the quarter second that may be caught up
    start = time.monotonic()
    for _ in range(4):
        pace.request()
    assert time.monotonic() - start > 0.29


# A list


def test_every_row_has_its_row(server: _Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    good, gone = server.address("good/v.mp4"), server.address("gone/v.mp4")
    path = _write_csv(
        tmp_path / "l.csv", "id,url,start,end,licence", f"whole,{good},,,CC0-1.0", f"part,{good},2,3,MIT",
        f"lost,{gone},,,", f"late,{good},99,100,", f"whole,{good},1,2,",
    )  # fmt: skip
    config = FetchConfig(list=path, out=tmp_path / "out", source="mine", http=QUICK)
    assert main(config) == 3
    rows = {
        (row["name"], row["start_s"]): row
        for row in pq.read_table(tmp_path / "out" / "fetched.parquet").to_pylist()
    }
    assert len(rows) == 5
    assert [rows[key]["status"] for key in rows] == ["ok", "ok", "failed", "failed", "failed"]
    assert "http 404" in rows["lost", None]["reason"]
    assert "outside the file" in rows["late", 99.0]["reason"]
    assert "another row" in rows["whole", 1.0]["reason"]
    assert "lost: http 404" in capsys.readouterr().err
    # One address is fetched once, and the annotator finds source and licence beside each video.
    assert len(server.asked("good/v.mp4")) == 1
    videos = tmp_path / "out" / "videos"
    assert json.loads((videos / "part.mp4.json").read_text()) == {"source": "mine", "licence": "MIT"}
    assert (videos / "whole.mp4").read_bytes() == server.data
    assert main(config) == 3
    assert len(server.asked("good/v.mp4")) == 1


def test_a_cut_holds_its_span_from_the_key_frame_on(server: _Server, media: Any, tmp_path: Path) -> None:
    """The served video has key frames at 0, 40 and 80 of 120 frames at 30 Hz; 2 to 3 s are frames 60 to 90."""
    import av

    path = _write_csv(tmp_path / "l.csv", "id,url,start,end", f"part,{server.address('good/v.mp4')},2,3")
    (row,) = fetch(FetchConfig(list=path, out=tmp_path / "out", http=QUICK))
    with av.open(str(tmp_path / "out" / row["path"])) as container:
        numbers = [media.number_of(frame.to_ndarray(format="rgb24")) for frame in container.decode(video=0)]
    assert numbers[0] == 40
    assert set(range(60, 90)) <= set(numbers) <= set(range(40, 94))
    assert probe(str(tmp_path / "out" / row["path"])).timestamps_s[0] == pytest.approx(0, abs=0.2)


def test_yt_dlp_fetches_and_its_failures_are_rows(server: _Server, tmp_path: Path) -> None:
    pytest.importorskip("yt_dlp", reason="yt-dlp is an extra: pip install 'worldline[fetch]'")
    path = _write_csv(
        tmp_path / "l.csv",
        "id,url",
        f"good,{server.address('good/v.mp4')}",
        f"lost,{server.address('gone/v.mp4')}",
    )
    good, lost = fetch(
        FetchConfig(list=path, out=tmp_path / "out", backend="yt-dlp", http=HttpConfig(tries=1))
    )
    assert good["status"] == "ok", good["reason"]
    assert (tmp_path / "out" / good["path"]).read_bytes() == server.data
    assert lost["reason"].startswith("yt-dlp: ")
    assert "404" in lost["reason"]


def test_wrong_asks() -> None:
    with pytest.raises(ValueError, match="backend"):
        FetchConfig(list=Path("l"), out=Path("o"), backend="curl")
    assert main(FetchConfig(list=Path("nowhere.csv"), out=Path("o"))) == 1
