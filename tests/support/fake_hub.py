"""A stand-in for the Hugging Face hub on the loopback: the few routes that a download uses, and faults on demand."""

import hashlib
import json
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

TOKEN = "hf_right"


@dataclass
class Repository:
    """Files by revision; `commit` names are made up from the revision."""

    revisions: dict[str, dict[str, bytes]]
    gated: bool = False

    @staticmethod
    def commit(revision: str) -> str:
        return hashlib.sha1(revision.encode()).hexdigest()

    def files(self, revision: str) -> tuple[str, dict[str, bytes]] | None:
        for name, files in self.revisions.items():
            if revision in (name, self.commit(name)):
                return self.commit(name), files
        return None


@dataclass
class StandIn:
    """`requests` holds (method, path, Range header or None). `cuts` end one transfer of a file after so many bytes;
    `stalls` let each transfer of a file hang there until `go_on` is set."""

    repositories: dict[str, Repository] = field(default_factory=dict)
    requests: list[tuple[str, str, str | None]] = field(default_factory=list)
    cuts: dict[str, int] = field(default_factory=dict)
    stalls: dict[str, int] = field(default_factory=dict)
    go_on: threading.Event = field(default_factory=threading.Event)
    stalled: threading.Event = field(default_factory=threading.Event)
    status: int = 0  # answers everything with it, when set
    url: str = ""

    def __enter__(self) -> "StandIn":
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": self}))
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self.go_on.set()
        self.server.shutdown()
        self.server.server_close()

    def fetched(self) -> list[str]:
        """The files whose bytes were asked for, in order."""
        return [path.rsplit("/", 1)[1] for method, path, _ in self.requests if method == "GET" and "/resolve/" in path]


class _Handler(BaseHTTPRequestHandler):
    hub: StandIn
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self._route()

    def do_GET(self) -> None:
        self._route()

    def _route(self) -> None:
        path = unquote(urlsplit(self.path).path)
        self.hub.requests.append((self.command, path, self.headers.get("Range")))
        if self.hub.status:
            self._error(self.hub.status, "")
            return
        is_api = path.startswith("/api/models/")
        owner, name, *rest = path.removeprefix("/api/models/").strip("/").split("/")
        repository = self.hub.repositories.get(f"{owner}/{name}")
        if repository is None:
            self._error(404, "RepoNotFound")
            return
        if repository.gated and self.headers.get("Authorization") != f"Bearer {TOKEN}":
            self._error(401, "GatedRepo")
            return
        found = repository.files(rest[1] if rest else "main")
        if found is None:
            self._error(404, "RevisionNotFound")
            return
        commit, files = found
        if not is_api:
            self._file(commit, "/".join(rest[2:]), files)
            return
        if rest and rest[0] == "tree":
            tree = [
                {"type": "file", "path": name, "size": len(data), "oid": _oid(data)} for name, data in files.items()
            ]
            self._json(tree)
            return
        siblings = [{"rfilename": name} for name in files]
        self._json({"_id": "0", "id": f"{owner}/{name}", "sha": commit, "siblings": siblings})

    def _file(self, commit: str, name: str, files: dict[str, bytes]) -> None:
        if name not in files:
            self._error(404, "EntryNotFound")
            return
        data = files[name]
        header = self.headers.get("Range")
        start = int(header.removeprefix("bytes=").rstrip("-")) if header else 0
        self.send_response(206 if header else 200)
        if header:
            self.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}")
        self.send_header("ETag", f'"{_oid(data)}"')
        self.send_header("X-Repo-Commit", commit)
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("Content-Length", str(len(data) - start))
        self.end_headers()
        if self.command == "HEAD":
            return
        if name in self.hub.stalls:
            self.wfile.write(data[start : self.hub.stalls[name]])
            self.hub.stalled.set()
            self.hub.go_on.wait(30)
            self.close_connection = True
            return
        end = self.hub.cuts.pop(name, len(data))
        self.wfile.write(data[start:end])
        self.close_connection = end != len(data)

    def _json(self, value: object) -> None:
        body = json.dumps(value).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def _error(self, status: int, code: str) -> None:
        self.send_response(status)
        if code:
            self.send_header("X-Error-Code", code)
        self.send_header("Content-Length", "0")
        self.end_headers()


def _oid(data: bytes) -> str:
    return hashlib.sha1(data).hexdigest()
