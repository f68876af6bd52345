"""Listening on an address, and serving the page there until Ctrl-C."""

from __future__ import annotations

import secrets
import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from types import FrameType

import uvicorn

from sfpp_cli import interruption
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
    with ExitStack() as stack:
        try:
            family, kind, _, _, place = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
            server = stack.enter_context(socket.socket(family, kind))
            server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            server.bind(place)
            server.listen()
        except OSError as error:
            raise UserError(
                f"cannot listen on {host} port {port} ({reason(error)}): choose another --port or --host"
            ) from error
        yield Address(host, server.getsockname()[1], token, server)


class PageServer(uvicorn.Server):
    """Ends the streams of its viewers when it is told to end."""

    def __init__(self, show: Show, address: Address) -> None:
        app = application(show, host=address.host, token=address.token)
        super().__init__(
            uvicorn.Config(app, log_level="error", timeout_graceful_shutdown=GRACE, lifespan="off")
        )
        self._show = show
        self._socket = address.socket

    def serve_until_told(self) -> None:
        """Until Ctrl-C, or until `tell_to_end`."""
        try:
            self.run(sockets=[self._socket])
        except KeyboardInterrupt:
            interruption.answered()  # the usual way to end it
        finally:
            self._show.close()

    def tell_to_end(self) -> None:
        self._show.closed = True
        self.should_exit = True

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        interruption.heard()
        self.tell_to_end()
        super().handle_exit(sig, frame)
