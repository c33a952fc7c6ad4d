"""Labelling on a page of this machine: loopback only, behind a token that only its user knows.

    GET  /TOKEN/               the page; GET /TOKEN/state: the question
    POST /TOKEN/answer         {"version", "verdict", "place"?} -> {"state"}
    POST /TOKEN/undo           {"version"} -> {"state"}
    POST /TOKEN/finish         {} -> {"stopped": true}

Another user of the machine does not know the token. Another site in the same browser neither knows
it nor may send JSON here (no CORS), and a name that it points at this machine is refused by Host.
"""

from __future__ import annotations

import json
import secrets
import threading
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib import resources
from typing import Any

from fourstage.errors import FourstageError, InputError
from fourstage.labelling.labels import VERDICTS
from fourstage.labelling.session import Session
from fourstage.labelling.words import harmless, shown_turns

_FILES = {
    "": ("index.html", "text/html; charset=utf-8"),
    "style.css": ("style.css", "text/css; charset=utf-8"),
    "script.js": ("script.js", "text/javascript; charset=utf-8"),
}
_MOST_BYTES = 4096
_SECONDS = 30
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src data:; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)


class LabelServer(ThreadingHTTPServer):
    """Serves one session; `wait` returns when the labeller stops.

    Args:
        port: 0 takes a free one.

    Raises:
        InputError: the port is taken.
    """

    daemon_threads = True

    def __init__(self, session: Session, port: int = 0):
        try:
            super().__init__(("127.0.0.1", port), _Handler)
        except OSError as error:
            raise InputError(
                f"--port {port}: {error.strerror}; leave it out to take a free port"
            ) from error
        self.session = session
        self.token = secrets.token_urlsafe(24)
        self.lock = threading.Lock()
        self.finished = threading.Event()
        self.failure: FourstageError | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/{self.token}/"

    def wait(self) -> None:
        """Serves until the page says that it is done.

        Raises:
            MachineError: a label could not be written.
            KeyboardInterrupt: as usual.
        """
        serving = threading.Thread(target=self.serve_forever, args=(0.1,), daemon=True)
        serving.start()
        try:
            self.finished.wait()
        finally:
            self.shutdown()
            self.server_close()
        if self.failure is not None:
            raise self.failure

    def state(self) -> dict[str, Any]:
        """What the page shows; the caller holds the lock."""
        question = self.session.question()
        return {
            "version": self.session.labels.version,
            "labeller": self.session.name,
            "done": self.session.done,
            "total": len(self.session.items),
            "turns": shown_turns(question.item.task.prompt) if question else [],
            "texts": [harmless(text) for text in question.texts] if question else [],
        }


class _Handler(BaseHTTPRequestHandler):
    timeout = _SECONDS
    server_version, sys_version = "fourstage", ""

    @property
    def labelled(self) -> LabelServer:
        assert isinstance(self.server, LabelServer)
        return self.server

    def do_GET(self) -> None:
        name = self._name()
        if name == "state":
            with self.labelled.lock:
                self._json(HTTPStatus.OK, {"state": self.labelled.state()})
        elif name in _FILES:
            file, kind = _FILES[name]
            found = resources.files("fourstage.labelling").joinpath("page", file).read_bytes()
            self._send(HTTPStatus.OK, found, kind)
        elif name is not None:
            self._refuse(HTTPStatus.NOT_FOUND, "there is no such page")

    def do_POST(self) -> None:
        name = self._name()
        if name is None:
            return
        told = self._told()
        if told is None:
            return
        if name == "finish":
            self._json(HTTPStatus.OK, {"stopped": True})
            self.labelled.finished.set()
        elif name in ("answer", "undo"):
            with self.labelled.lock:
                self._change(name, told)
        else:
            self._refuse(HTTPStatus.NOT_FOUND, "there is no such page")

    def _name(self) -> str | None:
        """What stands behind the token; None where the request was refused."""
        port = self.labelled.server_port
        hosts = {f"127.0.0.1:{port}", f"localhost:{port}"}
        origin = self.headers.get("Origin")
        if self.headers.get("Host") not in hosts:
            return self._refuse(HTTPStatus.FORBIDDEN, "this page is for 127.0.0.1 alone")
        if origin is not None and origin not in {f"http://{host}" for host in hosts}:
            return self._refuse(HTTPStatus.FORBIDDEN, "this page takes nothing from other sites")
        token, _, name = self.path.removeprefix("/").partition("/")
        # Bytes: comparing in constant time takes no other text than ASCII.
        if not secrets.compare_digest(token.encode(), self.labelled.token.encode()):
            return self._refuse(HTTPStatus.NOT_FOUND, "open the address that the terminal shows")
        return name

    def _told(self) -> dict[str, Any] | None:
        """The JSON object that was sent; None where the request was refused."""
        if self.headers.get_content_type() != "application/json":
            return self._refuse(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, "send application/json")
        length = self.headers.get("Content-Length", "")
        if not (length.isascii() and length.isdecimal()) or int(length) > _MOST_BYTES:
            return self._refuse(HTTPStatus.BAD_REQUEST, f"send at most {_MOST_BYTES} bytes")
        try:
            told = json.loads(self.rfile.read(int(length)))
        except (ValueError, RecursionError):
            told = None
        if not isinstance(told, dict):
            return self._refuse(HTTPStatus.BAD_REQUEST, "send a JSON object")
        return told

    def _change(self, name: str, told: dict[str, Any]) -> None:
        """Writes what was answered, unless the page showed another question than is asked now."""
        session = self.labelled.session
        question = session.question()
        note = ""
        try:
            if told.get("version") != session.labels.version:
                note = "Another tab has answered meanwhile: this is the question now."
            elif name == "undo":
                note = "" if session.undo() else "Nothing to undo."
            elif question is None:
                note = "Everything is labelled."
            else:
                place = told.get("place")
                if not _is_answer(told.get("verdict"), place, len(question.shown)):
                    return self._refuse(HTTPStatus.BAD_REQUEST, "this is no answer")
                session.answer(question, told["verdict"], place)
        except FourstageError as error:
            self.labelled.failure = error
            self.labelled.finished.set()
            return self._refuse(HTTPStatus.INTERNAL_SERVER_ERROR, f"not saved: {error}")
        self._json(HTTPStatus.OK, {"state": self.labelled.state(), "note": note})

    def _refuse(self, status: HTTPStatus, why: str) -> None:
        # What was sent is not read, so the connection cannot go on.
        self.close_connection = True
        self._json(status, {"note": why})

    def _json(self, status: HTTPStatus, value: Any) -> None:
        self._send(status, json.dumps(value).encode(), "application/json")

    def _send(self, status: HTTPStatus, content: bytes, kind: str) -> None:
        self.send_response(status)
        for name, value in (
            ("Content-Type", kind),
            ("Content-Length", str(len(content))),
            ("Content-Security-Policy", _POLICY),
            ("Referrer-Policy", "no-referrer"),
            ("X-Content-Type-Options", "nosniff"),
            ("Cross-Origin-Resource-Policy", "same-origin"),
            ("Cache-Control", "no-store"),
        ):
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *args: Any) -> None:
        """Says nothing: a line a request would hide the address, and the token stands in each."""


def _is_answer(verdict: Any, place: Any, shown: int) -> bool:
    if verdict == "best":
        return isinstance(place, int) and not isinstance(place, bool) and 0 <= place < shown
    return verdict in VERDICTS and place is None
