"""A Hugging Face hub on localhost that serves the repositories in a folder to `huggingface_hub` and `datasets`."""

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from tests.datamodules.servers import running

LARGE = (".parquet", ".gz", ".safetensors")
"""The ends of names of files that count as large, whatever their size."""


def commit_of(name: str) -> str:
    """Return the commit of a repository's branch `main`: 40 hexadecimal digits derived from its name."""
    return hashlib.sha1(name.encode()).hexdigest()


@contextmanager
def hub(root: Path) -> Iterator[str]:
    """Serve <root>/datasets/<owner>/<name>/ and <root>/models/<owner>/<name>/; yields the value for HF_ENDPOINT."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(_Hub, root))
    with running(server) as port:
        yield f"http://127.0.0.1:{port}"


class _Hub(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def __init__(self, root: Path, *arguments: Any) -> None:
        self.root = root
        super().__init__(*arguments)

    def do_GET(self) -> None:
        words = unquote(urlsplit(self.path).path).strip("/").split("/")
        if words[0] == "api" and len(words) >= 4:
            self._answer_api(words[1], f"{words[2]}/{words[3]}", words[4:])
        elif "resolve" in words:
            at = words.index("resolve")
            kind = "datasets" if words[0] == "datasets" else "models"
            self._answer_file(kind, "/".join(words[at - 2 : at]), "/".join(words[at + 2 :]))
        else:
            self._send_error("EntryNotFound")

    do_HEAD = do_GET

    def _answer_api(self, kind: str, name: str, rest: list[str]) -> None:
        folder = self.root / kind / name
        revision = rest[1] if len(rest) > 1 else "main"
        if not folder.is_dir():
            self._send_error("RepoNotFound")
        elif revision not in ("main", commit_of(name)):
            self._send_error("RevisionNotFound")
        elif rest[:1] == ["tree"]:
            below = folder.joinpath(*rest[2:])
            if below.is_dir():
                recursive = "recursive=True" in self.path or "recursive=true" in self.path
                self._send_json([_entry(folder, str(path.relative_to(folder))) for path in _listed(below, recursive)])
            else:
                self._send_error("EntryNotFound")
        else:
            files = [{"rfilename": str(path.relative_to(folder))} for path in _listed(folder, True) if path.is_file()]
            info = {"_id": name, "id": name, "sha": commit_of(name), "private": False, "tags": [], "downloads": 0}
            self._send_json(info | {"likes": 0, "siblings": files})

    def _answer_file(self, kind: str, name: str, path: str) -> None:
        file = self.root / kind / name / path
        if not file.is_file():
            self._send_error("EntryNotFound")
            return
        content = file.read_bytes()
        first, last, code = 0, len(content) - 1, 200
        if (byte_range := self.headers.get("Range", "")).startswith("bytes="):
            begin, _, end = byte_range.removeprefix("bytes=").partition("-")
            first, last, code = int(begin), min(int(end or last), last), 206
        headers = {"ETag": f'"{_hash(path, content)}"', "X-Repo-Commit": commit_of(name)}
        if code == 206:
            headers["Content-Range"] = f"bytes {first}-{last}/{len(content)}"
        self._send(code, content[first : last + 1], headers | {"Accept-Ranges": "bytes"})

    def _send_error(self, code: str) -> None:
        self._send(404, json.dumps({"error": code}).encode(), {"X-Error-Code": code, "X-Error-Message": code})

    def _send_json(self, document: Any) -> None:
        self._send(200, json.dumps(document).encode(), {"Content-Type": "application/json"})

    def _send(self, code: int, content: bytes, headers: dict[str, str]) -> None:
        self.send_response(code)
        for name, value in {"Content-Length": str(len(content)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def log_message(self, format: str, *arguments: Any) -> None:
        pass


def _listed(folder: Path, recursive: bool) -> list[Path]:
    return sorted(folder.rglob("*") if recursive else folder.iterdir())


def _entry(folder: Path, path: str) -> dict[str, Any]:
    file = folder / path
    if file.is_dir():
        return {"type": "directory", "path": path, "oid": "0" * 40, "size": 0}
    content = file.read_bytes()
    entry = {"type": "file", "path": path, "oid": _git_hash(content), "size": len(content)}
    if path.endswith(LARGE):
        entry["lfs"] = {"oid": _hash(path, content), "size": len(content), "pointerSize": 134}
    return entry


def _hash(path: str, content: bytes) -> str:
    """The hash by which the hub knows a file: SHA-256 of a large one, that of git of any other."""
    return hashlib.sha256(content).hexdigest() if path.endswith(LARGE) else _git_hash(content)


def _git_hash(content: bytes) -> str:
    return hashlib.sha1(f"blob {len(content)}\0".encode() + content).hexdigest()
