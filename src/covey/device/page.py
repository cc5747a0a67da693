"""The owner's page on loopback: ledger, choices and buttons, for a browser on this computer and nobody else.

- It listens on 127.0.0.1 only, on a port that the system chooses.
- The address holds a random token; without it every request gets 404, so another user or program of this computer
  learns nothing.
- The ``Host`` header has to name the loopback address and the port: a foreign site whose name is made to point here
  (DNS rebinding) gets 403.
- Buttons are POST forms with a second random token, and a foreign ``Origin`` is refused: no page elsewhere can press
  them. No header allows other origins anything.
- No script, no cookie, no cache; nothing is loaded from elsewhere, and the content security policy says so.
"""

import hmac
import secrets
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import ClassVar
from urllib.parse import parse_qs, quote, unquote, urlsplit

from covey.device.consent import Owner
from covey.device.page_html import STYLE_HASH, error_page, render
from covey.types.errors import CoveyError

__all__ = ["OwnerPage"]

_MAX_FORM_BYTES = 4096
_HEADERS = {
    "Content-Type": "text/html; charset=utf-8",
    "Content-Security-Policy": f"default-src 'none'; style-src '{STYLE_HASH}'; form-action 'self'; base-uri 'none'; "
    "frame-ancestors 'none'",
    "Cache-Control": "no-store",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "same-origin",  # with "no-referrer" a browser would send its own forms with a null Origin
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}


class OwnerPage:
    """A running page. Use as a context manager; :meth:`serve` answers until :meth:`stop`."""

    def __init__(self, owner: Owner, *, port: int = 0) -> None:
        """Listen on 127.0.0.1.

        Raises:
            OSError: the port is in use.
        """
        token = secrets.token_urlsafe(32)

        class Handler(_Handler):
            pass

        Handler.owner, Handler.token, Handler.csrf = owner, token, secrets.token_urlsafe(32)
        self._server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
        self._server.daemon_threads = True
        Handler.port = self._server.server_port
        self.url = f"http://127.0.0.1:{self._server.server_port}/{token}/"

    def serve(self) -> None:
        """Answer requests until :meth:`stop`."""
        self._server.serve_forever(poll_interval=0.1)

    def stop(self) -> None:
        """End :meth:`serve`, from another thread."""
        self._server.shutdown()

    def close(self) -> None:
        """Stop listening."""
        self._server.server_close()

    def __enter__(self) -> "OwnerPage":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


class _Handler(BaseHTTPRequestHandler):
    owner: ClassVar[Owner]
    token: ClassVar[str]
    csrf: ClassVar[str]
    port: ClassVar[int]

    server_version, sys_version = "covey", ""
    timeout = 10  # a connection that says nothing holds its thread no longer

    def do_GET(self) -> None:
        path = self._path()
        if path is None:
            return
        if path != "":
            self._refuse(404, "no such page")
            return
        notice = parse_qs(urlsplit(self.path).query).get("done", [""])[0]
        now_s = self.owner.clock()
        self._send(200, render(self.owner.overview(), csrf=self.csrf, now_s=now_s, notice=_NOTICES.get(notice, "")))

    def do_POST(self) -> None:
        act = self._path()
        if act is None:
            return
        form = self._form()
        if form is None or not hmac.compare_digest(form.get("csrf", "").encode(), self.csrf.encode()):
            self._refuse(403, "this button is not of this page; open the page again")
            return
        try:
            done = _act(self.owner, act, form)
        except CoveyError as error:
            self._send(500, error_page("It did not work", f"{error}. {error.hint}"))
            return
        if done is None:
            self._refuse(404, "no such button")
            return
        self.send_response(303)
        self.send_header("Location", f"/{self.token}/?done={quote(done)}")
        self.send_header("Content-Length", "0")
        self.end_headers()

    def _path(self) -> str | None:
        """Return the path behind the token, or answer and return None: a foreign host, origin or token."""
        allowed = {f"{name}:{self.port}" for name in ("127.0.0.1", "localhost")}
        origin = self.headers.get("Origin")
        if self.headers.get("Host") not in allowed or (
            origin is not None and origin.removeprefix("http://") not in allowed
        ):
            self._refuse(403, "this page answers the browser of this computer only")
            return None
        _, token, *rest = (*unquote(urlsplit(self.path).path).split("/", 2), "")
        if not hmac.compare_digest(token.encode(), self.token.encode()) or not rest:
            self._refuse(404, "no such page; use the whole address that was printed")
            return None
        return rest[0]

    def _form(self) -> dict[str, str] | None:
        try:
            length = int(self.headers.get("Content-Length", ""))
        except ValueError:
            return None
        if not 0 < length <= _MAX_FORM_BYTES:
            return None
        try:
            fields = parse_qs(self.rfile.read(length).decode(), keep_blank_values=True, max_num_fields=10)
        except ValueError:
            return None
        return {name: values[0] for name, values in fields.items()}

    def _refuse(self, status: int, text: str) -> None:
        self.close_connection = True
        self._send(status, error_page("Not here", text))

    def _send(self, status: int, text: str) -> None:
        body = text.encode()
        self.send_response(status)
        for name, value in _HEADERS.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Log nothing: the path holds the token."""


_NOTICES = {
    "pause": "Paused.",
    "resume": "Resumed.",
    "refuse": "Refused.",
    "accept": "Accepted.",
    "forget": "Deleted.",
}


def _act(owner: Owner, act: str, form: dict[str, str]) -> str | None:
    """Do what a button says; return the notice's name, or None for a button that there is not."""
    population = form.get("population", "")
    match act:
        case "pause":
            owner.pause(float(form["for_s"]) if form.get("for_s", "").isdecimal() else float("inf"))
        case "resume":
            owner.resume()
        case "refuse":
            owner.refuse(population)
        case "accept":
            owner.accept(population)
        case "forget" if form.get("sure") == "yes":
            match form.get("what"):
                case "examples":
                    owner.forget_examples()
                case "population":
                    owner.forget_population(population)
                case "everything":
                    owner.forget_everything()
                case _:
                    return None
        case _:
            return None
    return act
