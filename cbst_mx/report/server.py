"""Reports in a browser, live while runs go on. Nothing is written, and no file but the runs' own can be asked for.

The server answers three addresses: ``/`` lists the runs, ``/report?run=KEY&run=KEY`` is the report of some, ``/state``
tells a page that there is something new. A run's key is a digest of its path: no path comes from a request.
"""

from __future__ import annotations

import hashlib
import http.server
import ipaddress
import socket
import sys
import threading
import urllib.parse
from http import HTTPStatus
from pathlib import Path
from typing import Any, Sequence

from cbst_mx.errors import CBSTError, ConfigError
from cbst_mx.evaluation.run_results import RunResults
from cbst_mx.messages import printable, stage_title
from cbst_mx.report.page import build_page, render_index, render_problem
from cbst_mx.report.story import find_below
from cbst_mx.run_dir import RunDir, lock_owner

__all__ = ["ReportServer", "open_server"]

_KEPT = 8  # pages
_FIELDS = 1000  # of a request


def open_server(folders: Sequence[Path], *, host: str = "127.0.0.1", port: int = 8765, **options: Any) -> ReportServer:
    """Open a server of reports; ``serve_forever`` answers, ``address`` is where.

    Parameters
    ----------
    folders : sequence of Path
        Run folders, or folders below which runs are; runs that come later are found as well.
    host : str
        Name or number of the address to listen at.
    port : int
        0 for a free one.
    **options
        Keyword arguments of :func:`.page.build_page`.

    Raises
    ------
    ConfigError
        If the address cannot be listened at.
    """
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        kind = type("Server", (ReportServer,), {"address_family": family})
        return kind((host, port), folders, options)
    except OSError as error:
        raise ConfigError(f"host and port must be free to listen at, got {host} and {port}: {error}") from error


class ReportServer(http.server.ThreadingHTTPServer):
    """Answers with pages; see :func:`open_server`."""

    daemon_threads = True

    def __init__(self, place: tuple[str, int], folders: Sequence[Path], options: dict[str, Any]):
        self.folders, self.options = list(folders), options
        self._pages: dict[tuple[str, ...], tuple[str, str]] = {}
        self._building = threading.Lock()
        super().__init__(place, _Handler)
        self.hosts = self._names(place[0])

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing of who has gone before the answer came."""
        if not isinstance(sys.exc_info()[1], ConnectionError):
            super().handle_error(request, client_address)

    @property
    def address(self) -> str:
        """Where the pages are."""
        host, port = self.server_address[:2]
        if self._is_open():
            host = socket.gethostname()
        return f"http://{f'[{host!s}]' if ':' in str(host) else host!s}:{port}/"

    def found(self) -> dict[str, Path]:
        """Return the runs there are now, by key."""
        return find_below(self.folders)

    def state(self, keys: Sequence[str]) -> str:
        """Return a digest of what the runs have written."""
        runs = self.found()
        parts = [str(sorted(runs))]
        for key in keys or runs:
            if key in runs:
                folder = RunDir(runs[key])
                files = [folder.ledger, folder.summary, *sorted(runs[key].glob("*/evaluation.json"))]
                files += sorted(runs[key].glob("*/thresholds.json"))
                parts += [f"{path} {_stamp(path)}" for path in files]
        return hashlib.sha256("\n".join(parts).encode("utf-8", "surrogateescape")).hexdigest()

    def index(self) -> str:
        """Return the page that lists the runs."""
        return render_index([_row(key, path) for key, path in self.found().items()], live="/state")

    def report(self, keys: Sequence[str]) -> str:
        """Return the report of some runs, as it was built last where nothing has changed.

        Raises
        ------
        CBSTError
            If a run is not there, or cannot be read.
        """
        runs = self.found()
        if not keys:
            raise ConfigError("tick at least one run in the list")
        if any(key not in runs for key in keys):
            raise ConfigError("run must be the key of a run in the list: it may have been removed")
        chosen = tuple(dict.fromkeys(keys))
        with self._building:
            state = self.state(chosen)
            kept = self._pages.get(chosen)
            if kept is not None and kept[0] == state:
                return kept[1]
            query = urllib.parse.urlencode([("run", key) for key in chosen])
            html = build_page([runs[key] for key in chosen], live=f"/state?{query}", **self.options).html
            self._pages.pop(chosen, None)
            self._pages[chosen] = (state, html)
            while len(self._pages) > _KEPT:
                self._pages.pop(next(iter(self._pages)))
            return html

    def answers(self, host: str) -> bool:
        """Return whether a Host header names this server: others come from pages that had their name point here.

        A server that listens everywhere answers to every address in numbers; only a name can be pointed elsewhere.
        """
        if host.lower() in self.hosts:
            return True
        name = host.rpartition(":")[0] if host.endswith(f":{self.server_address[1]}") else host
        try:
            ipaddress.ip_address(name.strip("[]"))
        except ValueError:
            return False
        return self._is_open()

    def _is_open(self) -> bool:
        return ipaddress.ip_address(str(self.server_address[0]).split("%")[0]).is_unspecified

    def _names(self, host: str) -> frozenset[str]:
        """Return the Host headers that are answered, in lower case."""
        number, port = self.server_address[:2]
        names = {host, str(number)}
        if self._is_open():
            names |= {"localhost", socket.gethostname(), socket.getfqdn()}
        elif ipaddress.ip_address(str(number).split("%")[0]).is_loopback:
            names |= {"localhost", "127.0.0.1", "::1"}
        whole = {f"[{name}]" if ":" in name else name for name in names}
        return frozenset(name.lower() for one in whole for name in (one, f"{one}:{port}"))


class _Handler(http.server.BaseHTTPRequestHandler):
    """One request."""

    server: ReportServer
    server_version = "cbst_mx"
    sys_version = ""
    timeout = 30

    def do_GET(self) -> None:
        """Answer a request for a page."""
        if not self.server.answers(self.headers.get("Host") or ""):
            self._answer(HTTPStatus.FORBIDDEN, "the Host header names another place than this server", "text/plain")
            return
        parts = urllib.parse.urlsplit(self.path)
        try:
            keys = urllib.parse.parse_qs(parts.query, max_num_fields=_FIELDS).get("run", [])
            if parts.path == "/":
                self._answer(HTTPStatus.OK, self.server.index(), "text/html")
            elif parts.path == "/report":
                self._answer(HTTPStatus.OK, self.server.report(keys), "text/html")
            elif parts.path == "/state":
                self._answer(HTTPStatus.OK, self.server.state(keys), "text/plain")
            else:
                self._answer(HTTPStatus.NOT_FOUND, "there is no such page: / lists the runs", "text/plain")
        except (CBSTError, OSError, ValueError) as error:
            self._answer(HTTPStatus.CONFLICT, render_problem(printable(str(error))), "text/html")

    def do_HEAD(self) -> None:
        """Answer without the page."""
        self.do_GET()

    def _answer(self, status: HTTPStatus, text: str, kind: str) -> None:
        content = text.encode("utf-8", "replace")
        self.send_response(status)
        self.send_header("Content-Type", f"{kind}; charset=utf-8")
        self.send_header("Content-Length", str(len(content)))
        self.send_header("Cache-Control", "no-store")
        self.send_header("X-Content-Type-Options", "nosniff")
        self.send_header("X-Frame-Options", "DENY")
        self.send_header("Referrer-Policy", "no-referrer")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def log_message(self, format: str, *arguments: Any) -> None:
        """Say nothing of requests."""


def _stamp(path: Path) -> str:
    try:
        state = path.stat()
    except OSError:
        return "-"
    return f"{state.st_size} {state.st_mtime_ns}"


def _row(key: str, path: Path) -> dict[str, Any]:
    """Return what the list says of a run; where it cannot be read, why."""
    try:
        run = RunResults(path)
        evaluated = run.evaluated
        miou = {stage: 100 * run.miou(stage) for stage in evaluated} if run.leading is not None else {}
        last = evaluated[-1] if evaluated else None
        return {
            "key": key,
            "path": str(path),
            "name": run.settings.name,
            "method": run.settings.self_training.method.upper() if run.rounds else "source-only",
            "seed": run.settings.seed,
            "stage": "nothing yet" if last is None else f"{stage_title(last)} of {run.rounds}" if last else "source",
            "source": miou.get(0),
            "last": miou.get(last) if last is not None else None,
            "state": "finished" if run.finished else "going on" if lock_owner(path) else "not finished",
            "error": None,
        }
    except (CBSTError, OSError) as error:
        return {"key": key, "path": str(path), "name": path.name, "error": str(error)}
