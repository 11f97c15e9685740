"""A server of one file that is busy, breaks off, redirects, ignores ranges, or does not say where the file ends."""

import ssl
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from tests.datamodules.servers import running


@dataclass
class Odd:
    """What the server sends, and how oddly."""

    body: bytes
    headers: dict[str, str] = field(default_factory=lambda: {"ETag": '"1"'})
    ranges: bool = True
    breaks: int = 0
    """Answers that end in the middle."""
    pause_s: float = 0
    """How long a connection lives on before it breaks: the client loses what it has not read by then."""
    statuses: list[int] = field(default_factory=list)
    """What is answered before anything else."""
    retry_after: str = "0"
    redirect: str | None = None
    """Where everything but /moved is redirected to."""
    says_length: bool = True
    later: dict[str, str] = field(default_factory=dict)
    """Headers of all answers after the first one that broke off."""
    asked: list[str] = field(default_factory=list)
    """The methods and ranges of the requests."""


def _handler(odd: Odd) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, format: str, *arguments: Any) -> None:
            pass

        def answer(self, status: int, headers: dict[str, str]) -> None:
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.end_headers()

        def do_HEAD(self) -> None:
            self.do_GET()

        def do_GET(self) -> None:
            wanted = self.headers.get("Range", "")
            odd.asked.append(f"{self.command} {wanted}".strip())
            if odd.statuses:
                self.answer(odd.statuses.pop(0), {"Content-Length": "0", "Retry-After": odd.retry_after})
            elif odd.redirect and not self.path.startswith("/moved"):
                self.answer(302, {"Content-Length": "0", "Location": odd.redirect})
            else:
                self.send_file(int(wanted[len("bytes=") : -1]) if wanted and odd.ranges else None)

        def send_file(self, begin: int | None) -> None:
            body, headers = odd.body[begin or 0 :], dict(odd.headers)
            if begin is not None:
                headers["Content-Range"] = f"bytes {begin}-{len(odd.body) - 1}/{len(odd.body)}"
            headers |= {"Content-Length": str(len(body))} if odd.says_length else {"Connection": "close"}
            self.answer(200 if begin is None else 206, headers)
            self.close_connection = not odd.says_length
            if self.command == "HEAD":
                return
            if odd.breaks:
                odd.breaks -= 1
                odd.headers |= odd.later
                body, self.close_connection = body[: len(body) // 2], True
            self.wfile.write(body)
            if self.close_connection:
                self.wfile.flush()
                time.sleep(odd.pause_s)

    return Handler


@contextmanager
def odd_server(odd: Odd, certificate: Path | None = None) -> Iterator[str]:
    """Serve on localhost, with TLS if there is a certificate, beside whose .pem its .key lies; yields the address."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(odd))
    if certificate is not None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate, certificate.with_suffix(".key"))
        server.socket = context.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
    with running(server) as port:
        yield f"{'https' if certificate else 'http'}://localhost:{port}"
