"""Listening on an address, and serving the page there until Ctrl-C."""

from __future__ import annotations

import secrets
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import uvicorn

from sfpp_cli.errors import UserError, reason
from sfpp_cli.live.server import OWN, application
from sfpp_cli.live.show import Show

SHORTEST_TOKEN = 16
GRACE = 2
"""Seconds that viewers are given to leave."""


@dataclass(frozen=True)
class Address:
    """Where the page is."""

    host: str
    port: int
    token: str | None
    socket: socket.socket

    @property
    def url(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"http://{host}:{self.port}/" + (f"?token={self.token}" if self.token else "")


@contextmanager
def listen(host: str, port: int, token: str | None) -> Iterator[Address]:
    """A socket of one's own. UserError if the address cannot be had, or is open to others without a token."""
    if token is not None and (len(token) < SHORTEST_TOKEN or not token.isalnum()):
        raise UserError(f"--token: it takes {SHORTEST_TOKEN} letters and digits or more")
    if host not in OWN:
        token = token or secrets.token_hex(SHORTEST_TOKEN)
    try:
        family, kind, _, _, place = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        server = socket.socket(family, kind)
        server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        server.bind(place)
    except OSError as error:
        raise UserError(
            f"cannot listen on {host} port {port} ({reason(error)}): choose another --port or --host"
        ) from error
    with server:
        yield Address(host, server.getsockname()[1], token, server)


def serve(show: Show, address: Address) -> None:
    """Until Ctrl-C."""
    app = application(show, host=address.host, token=address.token)
    server = _Server(uvicorn.Config(app, log_level="error", timeout_graceful_shutdown=GRACE, lifespan="off"))
    server.show = show
    try:
        server.run(sockets=[address.socket])
    except KeyboardInterrupt:
        pass  # the usual way to end it
    finally:
        show.close()


class _Server(uvicorn.Server):
    """Ends the streams of its viewers when it is told to end."""

    show: Show

    def handle_exit(self, sig: int, frame: object) -> None:
        self.show.closed = True
        super().handle_exit(sig, frame)  # type: ignore[arg-type]
