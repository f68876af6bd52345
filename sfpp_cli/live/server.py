"""The page's server: who may ask, what is answered, and the stream of pictures.

It is meant for one's own machine. A page of another origin that is open in the same browser must not be
able to ask it for anything, under whatever name it calls it, so Host and Origin are checked; and where it
listens on another address, every request needs the token.
"""

from __future__ import annotations

import asyncio
import hmac
import json
import struct
from collections.abc import AsyncIterator, Awaitable, Callable
from importlib.resources import files
from typing import Any, get_args
from urllib.parse import urlsplit

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import MutableHeaders
from starlette.middleware import Middleware
from starlette.requests import Request as Asked
from starlette.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from sfpp_cli.core.rollout import How
from sfpp_cli.errors import UserError
from sfpp_cli.live.show import Piece, Show
from sfpp_cli.video.growing import whole_part

HOWS = get_args(How)
OWN = ("127.0.0.1", "localhost", "::1")
LOOK = 0.04
"""Seconds between two looks for new pieces."""
STATUS_EVERY = 0.5
"""Seconds between two lines about the state of things."""
LONGEST_REQUEST = 20_000
"""Bytes."""
BLOCK = 1 << 18
HEADERS = {
    # Nothing is loaded from elsewhere, and nobody shows this page within theirs.
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src 'self' data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}
PAGE = {
    "/": ("index.html", "text/html"),
    "/live.css": ("live.css", "text/css"),
    "/live.js": ("live.js", "text/javascript"),
}


def application(show: Show, *, host: str, token: str | None) -> Starlette:
    """`host` is the address it listens on; without a `token` it answers to this machine's names alone."""
    routes = [Route(path, _page(*page)) for path, page in PAGE.items()]
    routes += [
        Route("/stream", _stream(show)),
        Route("/download", _download(show)),
        Route("/offer", _answer(lambda words: _offer(show))),
    ]
    commands: dict[str, Callable[[dict[str, Any]], object]] = {
        "/start": lambda words: show.start(_text(words, "prompt"), _seed(words)),
        "/change": lambda words: show.change(_text(words, "prompt"), _how(words)),
        "/pause": lambda words: show.pause(words.get("paused") is True),
        "/stop": lambda words: show.stop(),
    }
    routes += [Route(path, _answer(command), methods=["POST"]) for path, command in commands.items()]
    guard = Middleware(_Guard, names=(*OWN, host), token=token)
    return Starlette(routes=routes, middleware=[guard])


class _Guard:
    """Answers whom it may, and says no to all others (ASGI)."""

    def __init__(self, app: ASGIApp, names: tuple[str, ...], token: str | None) -> None:
        self._app = app
        self._names = names
        self._token = token

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(HEADERS)
            await send(message)

        answer = self._refusal(Asked(scope)) or self._app
        await answer(scope, receive, send_with_headers)

    def _refusal(self, asked: Asked) -> Response | None:
        host = asked.headers.get("host", "")
        # With a token it may be reached under names that only the network knows.
        if self._token is None and _name(host) not in self._names:
            return PlainTextResponse("this page has another address", 421)
        origin = asked.headers.get("origin")
        if origin is not None and urlsplit(origin).netloc != host:
            return PlainTextResponse("pages of other origins may not ask", 403)
        given = asked.headers.get("x-token") or asked.query_params.get("token", "")
        if self._token is not None and not hmac.compare_digest(given.encode(), self._token.encode()):
            return PlainTextResponse("the address needs ?token=..., as the program has printed it", 401)
        return None


def _name(host: str) -> str:
    """Of a Host header, without the port."""
    try:
        return urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return ""


def _page(name: str, kind: str) -> Callable[[Asked], Response]:
    content = files("sfpp_cli.live").joinpath("page", name).read_text(encoding="utf-8")
    return lambda asked: Response(content, media_type=kind)


def _answer(command: Callable[[dict[str, Any]], object]) -> Callable[[Asked], Awaitable[Response]]:
    """A request of the page's script: JSON in, JSON out; what cannot be done is one line with status 409."""

    async def answer(asked: Asked) -> Response:
        words: Any = {}
        if asked.method == "POST":
            try:
                words = json.loads(await _body(asked))
            except ValueError:
                words = None
            if not isinstance(words, dict):
                return JSONResponse({"error": "a JSON object was expected"}, 400)
        try:
            made = await run_in_threadpool(command, words)
        except UserError as error:
            return JSONResponse({"error": str(error)}, 409)
        return JSONResponse(made if isinstance(made, dict) else {})

    return answer


async def _body(asked: Asked) -> bytes:
    """ValueError where there is more than any honest request has."""
    body = bytearray()
    async for part in asked.stream():
        body += part
        if len(body) > LONGEST_REQUEST:
            raise ValueError("the request is too long")
    return bytes(body)


def _text(words: dict[str, Any], name: str) -> str:
    text = words.get(name)
    if not isinstance(text, str):
        raise UserError(f"'{name}' must be a text")
    return text


def _seed(words: dict[str, Any]) -> int:
    seed = words.get("seed")
    if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed < 2**63:
        raise UserError("the seed must be a whole number from 0 on")
    return seed


def _how(words: dict[str, Any]) -> Any:
    how = words.get("how", "recache")
    if how not in HOWS:
        raise UserError(f"'how' takes {', '.join(HOWS)}")
    return how


def _offer(show: Show) -> dict[str, Any]:
    """What the page begins with."""
    offered = show.offered
    return {
        "prompt": offered.prompt,
        "seed": offered.seed,
        "width": offered.width,
        "height": offered.height,
        "fps": offered.fps,
        "hows": list(HOWS),
    }


def _stream(show: Show) -> Callable[[Asked], Response]:
    """Records of what happens, for one viewer: the state of things twice a second, and pictures as they come.

    A record is a line of JSON after its length in four bytes (big-endian), and after it, for pictures, their
    bytes, whose lengths the line gives. Whoever reads slowly holds up nobody else and costs no memory: it is
    sent what is newest when it is ready for more.
    """

    async def records() -> AsyncIterator[bytes]:
        newest = show.after(0)
        seen = newest[-1].number - 1 if newest else 0
        told = ""
        since = STATUS_EVERY
        show.viewers += 1
        try:
            while not show.closed:
                since += LOOK
                status = json.dumps({**show.status(), "viewers": show.viewers})
                if since >= STATUS_EVERY and status != told:
                    yield _record(status)
                    told = status
                    since = 0.0
                for piece in show.after(seen):
                    yield _pictures(piece)
                    seen = piece.number
                await asyncio.sleep(LOOK)
        finally:
            show.viewers -= 1

    return lambda asked: StreamingResponse(records(), media_type="application/octet-stream")


def _pictures(piece: Piece) -> bytes:
    lengths = [len(picture) for picture in piece.pictures]
    line = {"show": piece.show, "first": piece.first, "pictures": lengths}
    return _record(json.dumps(line)) + b"".join(piece.pictures)


def _record(line: str) -> bytes:
    data = line.encode()
    return struct.pack(">I", len(data)) + data


def _download(show: Show) -> Callable[[Asked], Response]:
    """The video so far, as a file."""

    def download(asked: Asked) -> Response:
        try:
            path = show.file()
            left = whole_part(path)
        except UserError as error:
            return PlainTextResponse(str(error), 409)
        file = path.open("rb")

        def blocks() -> Any:
            nonlocal left
            with file:
                while left:
                    block = file.read(min(left, BLOCK))
                    left -= len(block)
                    yield block

        name = {"Content-Disposition": f'attachment; filename="{path.name}"', "Content-Length": str(left)}
        return StreamingResponse(blocks(), media_type="video/mp4", headers=name)

    return download
