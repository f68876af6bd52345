"""Who may ask the live page's server, what it answers, and that no viewer harms another."""

from __future__ import annotations

import http.client
import json
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from waiting import until

from sfpp_cli.devices import used_megabytes
from sfpp_cli.errors import UserError
from sfpp_cli.live.serve import Address, PageServer, listen
from sfpp_cli.live.show import Show

pytest_plugins = ["live_show"]

TOKEN = "abcdefgh12345678"


@contextmanager
def serving(show: Show, token: str | None = None) -> Iterator[Address]:
    with listen("127.0.0.1", 0, token) as address:
        server = PageServer(show, address)
        thread = threading.Thread(target=server.serve_until_told)
        thread.start()
        until(lambda: server.started)
        try:
            yield address
        finally:
            server.tell_to_end()
            thread.join(timeout=20)
            assert not thread.is_alive(), "viewers do not hold it up"


@pytest.fixture
def page(show: Show) -> Iterator[Address]:
    with serving(show) as address:
        yield address


def ask(
    page: Address, path: str, words: Any = None, headers: dict[str, str] | None = None
) -> tuple[int, str, dict[str, str]]:
    """(status, body, headers) of a GET, or of a POST if there are `words`."""
    connection = http.client.HTTPConnection(page.host, page.port, timeout=60)
    body = None if words is None else json.dumps(words)
    connection.request("GET" if body is None else "POST", path, body, headers or {})
    response = connection.getresponse()
    text = response.read().decode(errors="replace")
    connection.close()
    return response.status, text, dict(response.getheaders())


class Viewer:
    """Reads the stream."""

    def __init__(self, page: Address) -> None:
        self._connection = http.client.HTTPConnection(page.host, page.port, timeout=60)
        self._connection.request("GET", "/stream")
        self._response = self._connection.getresponse()

    def record(self) -> dict[str, Any]:
        """The next one, with its pictures under "data"."""
        length = int.from_bytes(self._response.read(4))
        record: dict[str, Any] = json.loads(self._response.read(length))
        record["data"] = [self._response.read(count) for count in record.get("pictures", [])]
        return record

    def pictures(self) -> dict[str, Any]:
        """The next record that has pictures."""
        while not (record := self.record())["data"]:
            pass
        return record

    def leave(self) -> None:
        self._response.close()
        self._connection.close()


def test_a_video_is_started_steered_watched_and_taken_away(page: Address) -> None:
    status, text, _ = ask(page, "/offer")
    assert (status, json.loads(text)["prompt"], json.loads(text)["hows"][1]) == (
        200,
        "a red circle",
        "recache",
    )
    assert ask(page, "/download")[0] == 409
    assert ask(page, "/start", {"prompt": "a red circle", "seed": 3})[:2] == (200, "{}")
    viewers = [Viewer(page), Viewer(page)]
    first = [viewer.pictures() for viewer in viewers]
    assert first[0]["data"][0][:2] == b"\xff\xd8", "JPEG"
    assert ask(page, "/change", {"prompt": "a blue square", "how": "switch"})[0] == 200
    for viewer in viewers:
        until(lambda viewer=viewer: len(viewer.record().get("scenes", ())) == 2)
    assert ask(page, "/pause", {"paused": True})[0] == 200
    until(lambda: viewers[0].record().get("state") == "paused")
    assert ask(page, "/stop", {})[0] == 200
    until(lambda: viewers[1].record().get("state") == "ended")
    status, text, headers = ask(page, "/download")
    assert (status, headers["content-type"]) == (200, "video/mp4")
    assert "sfpp-live-1-3.mp4" in headers["content-disposition"]
    assert "ftyp" in text[:16]
    viewers[0].leave()
    until(lambda: viewers[1].record().get("viewers") == 1)
    viewers[1].leave()


@pytest.mark.parametrize(
    ("path", "words", "status", "said"),
    [
        ("/stop", {}, 409, "start one first"),
        ("/start", {"prompt": "a", "seed": -1}, 409, "seed"),
        ("/start", {"prompt": "a", "seed": True}, 409, "seed"),
        ("/start", {"prompt": ["a"], "seed": 1}, 409, "must be a text"),
        ("/start", {"prompt": " ", "seed": 1}, 409, "prompt is empty"),
        ("/change", {"prompt": "a", "how": "melt"}, 409, "recache"),
        ("/start", [], 400, "JSON object"),
        ("/start", {"prompt": "a" * 30_000, "seed": 1}, 400, "JSON object"),
        ("/nowhere", {}, 404, "Not Found"),
    ],
)
def test_what_cannot_be_done_is_said_in_one_line(
    page: Address, path: str, words: Any, status: int, said: str
) -> None:
    got, text, _ = ask(page, path, words)
    assert got == status
    assert said in text
    assert len(text.splitlines()) == 1


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Host": "evil.example"}, 421),
        ({"Host": "127.0.0.1.evil.example:80"}, 421),
        ({"Host": "["}, 421),
        ({"Origin": "http://evil.example"}, 403),
        ({"Origin": "null"}, 403),
        ({"Origin": "http://127.0.0.1:1"}, 403),
        ({"Host": "localhost"}, 200),
    ],
)
def test_other_names_and_other_origins_are_refused(
    page: Address, headers: dict[str, str], status: int
) -> None:
    assert ask(page, "/offer", headers=headers)[0] == status
    assert ask(page, "/", headers=headers)[0] == status
    assert ask(page, "/stop", {}, headers=headers)[0] == (409 if status == 200 else status)


def test_nothing_is_loaded_from_elsewhere_and_no_page_may_frame_it(page: Address) -> None:
    for path in ("/", "/live.js", "/live.css"):
        status, text, headers = ask(page, path)
        assert status == 200
        assert "http://" not in text
        assert "https://" not in text
        assert "//" not in text.replace("// ", "")
        assert "default-src 'none'" in headers["content-security-policy"]
        assert "frame-ancestors 'none'" in headers["content-security-policy"]


def test_with_a_token_all_needs_it_under_any_name(show: Show) -> None:
    with serving(show, TOKEN) as page:
        assert page.url.endswith(f"/?token={TOKEN}")
        for path in ("/", "/offer", "/stream", "/download", "/live.js"):
            assert ask(page, path)[0] == 401
            assert ask(page, f"{path}?token={TOKEN}x")[0] == 401
        assert ask(page, f"/offer?token={TOKEN}", headers={"Host": "studio.example"})[0] == 200
        assert ask(page, "/offer", headers={"X-Token": TOKEN})[0] == 200
        foreign = {"Origin": "http://evil.example", "X-Token": TOKEN}
        assert ask(page, "/stop", {}, headers=foreign)[0] == 403


def test_an_open_address_gets_a_token_and_a_taken_one_is_refused() -> None:
    with listen("0.0.0.0", 0, None) as address:
        assert address.token is not None
        assert len(address.token) >= 16
        with pytest.raises(UserError, match="another --port"), listen("0.0.0.0", address.port, None):
            pass
    with pytest.raises(UserError, match="16 letters"), listen("127.0.0.1", 0, "short"):
        pass
    with pytest.raises(UserError, match="cannot listen on 203"), listen("203.0.113.7", 0, None):
        pass  # an address of documentation, which no machine has


def test_a_viewer_that_never_reads_and_one_that_leaves_harm_nobody(page: Address) -> None:
    sleeper = socket.create_connection((page.host, page.port))
    sleeper.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    sleeper.sendall(b"GET /stream HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
    leaver = Viewer(page)
    viewer = Viewer(page)
    ask(page, "/start", {"prompt": "a red circle", "seed": 0})
    leaver.pictures()
    leaver.leave()
    seen = 0
    while seen < 36:
        record = viewer.pictures()
        assert record["first"] == seen, "nothing is left out for who reads"
        seen += len(record["data"])
    viewer.leave()
    sleeper.close()


@pytest.mark.slow
def test_twenty_viewers_for_two_minutes(page: Address) -> None:
    """One of them never reads, one comes and goes. Memory stays flat, and the stream goes on for all."""
    ask(page, "/start", {"prompt": "a red circle", "seed": 0})
    sleeper = socket.create_connection((page.host, page.port))
    sleeper.sendall(b"GET /stream HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
    end = time.monotonic() + 120
    lasts = [0] * 18

    def watch(number: int) -> None:
        viewer = Viewer(page)
        while time.monotonic() < end:
            lasts[number] = viewer.pictures()["first"]
        viewer.leave()

    def come_and_go() -> None:
        while time.monotonic() < end:
            viewer = Viewer(page)
            viewer.pictures()
            viewer.leave()

    threads = [threading.Thread(target=watch, args=(number,)) for number in range(18)]
    threads.append(threading.Thread(target=come_and_go))
    for thread in threads:
        thread.start()
    time.sleep(30)
    early = used_megabytes(_cpu())
    for thread in threads:
        thread.join(timeout=180)
        assert not thread.is_alive()
    late = used_megabytes(_cpu())
    assert late < early + 25, f"{early:.0f} MB after 30 s, {late:.0f} MB after 120 s"
    assert min(lasts) > 0.9 * max(lasts) > 0
    sleeper.close()


def _cpu() -> Any:
    import torch

    return torch.device("cpu")


def test_the_page_is_shipped() -> None:
    page = Path(__file__).parents[2] / "sfpp_cli" / "live" / "page"
    assert {path.name for path in page.iterdir()} == {"index.html", "live.css", "live.js"}
