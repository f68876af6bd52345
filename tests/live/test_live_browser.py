"""The live page in a real browser: start, watch, change the prompt, pause, stop, download."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from browser import Browser, Tab
from waiting import until

from sfpp_cli.live.serve import Address, PageServer, listen
from sfpp_cli.live.show import Show

pytest_plugins = ["live_show"]
pytestmark = pytest.mark.browser


@pytest.fixture
def page(show: Show) -> Iterator[Address]:
    with listen("127.0.0.1", 0, None) as address:
        server = PageServer(show, address)
        thread = threading.Thread(target=server.serve_until_told)
        thread.start()
        until(lambda: server.started)
        yield address
        server.tell_to_end()
        thread.join()


def text(tab: Tab, name: str) -> str:
    return str(tab.run(f"document.getElementById('{name}').textContent"))


def click(tab: Tab, name: str) -> None:
    tab.run(f"document.getElementById('{name}').click()")


def picture(tab: Tab) -> str:
    return str(tab.run("document.getElementById('picture').toDataURL()"))


@pytest.mark.parametrize(("width", "dark"), [(1280, False), (390, True)])
def test_nothing_is_wider_than_the_screen(
    browser: Browser, page: Address, tmp_path: Path, width: int, dark: bool
) -> None:
    tab = browser.open(page.url, width, 844 if width < 600 else 900, dark=dark)
    until(lambda: tab.run("document.getElementById('prompt').value") == "a red circle")
    until(lambda: "press Start" in text(tab, "note"))
    assert tab.run("document.documentElement.scrollWidth <= window.innerWidth")
    tab.picture(tmp_path / f"live-{width}.png")
    assert tab.errors == []
    tab.close()


def test_a_video_is_watched_while_it_is_made(browser: Browser, page: Address, show: Show) -> None:
    tab = browser.open(page.url)
    until(lambda: tab.run("document.getElementById('prompt').value") == "a red circle")
    tab.run("document.getElementById('prompt').value = '<b>a red circle</b>'")
    click(tab, "start")
    blank = picture(tab)
    until(lambda: picture(tab) != blank)
    seen = picture(tab)
    until(lambda: picture(tab) != seen)
    until(lambda: "frames/s" in text(tab, "fps"))

    tab.run("document.getElementById('prompt').value = 'a blue square'")
    click(tab, "change")
    until(lambda: "recache: a blue square" in text(tab, "scenes"))
    assert "<b>a red circle</b>" in text(tab, "scenes"), "what a prompt says is text"
    assert tab.run("document.querySelectorAll('#scenes b').length") == 0

    tab.run("document.activeElement.blur()")
    tab.press("Space")
    until(lambda: text(tab, "note") == "Paused.")
    until(lambda: text(tab, "pause") == "Go on")
    held = picture(tab)
    assert picture(tab) == held
    tab.press("Space")
    until(lambda: picture(tab) != held)

    click(tab, "stop")
    until(lambda: show.status()["state"] == "ended")
    until(lambda: text(tab, "note") == "Ended.")
    kind = "fetch(document.getElementById('download').href).then(r => r.blob()).then(b => b.type + b.size)"
    assert tab.run(kind) == f"video/mp4{show.file().stat().st_size}"
    assert tab.errors == []
    tab.close()


def test_what_is_wrong_is_said_on_the_page(browser: Browser, page: Address) -> None:
    tab = browser.open(page.url)
    until(lambda: tab.run("document.getElementById('prompt').value"))
    tab.run("document.getElementById('prompt').value = ' '")
    click(tab, "start")
    until(lambda: "prompt is empty" in text(tab, "error"))
    tab.run("document.getElementById('prompt').value = 'a circle'")
    tab.run("document.getElementById('seed').value = ''")
    click(tab, "start")
    until(lambda: "seed must be" in text(tab, "error"))
    tab.close()
