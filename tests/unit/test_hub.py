"""Fetching from a hub: a real HTTP server that speaks its protocol, and none at all."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

COMMIT = "0123456789abcdef0123456789abcdef01234567"
FILES = {"config.json": b'{"model_type": "llava"}', "weights.bin": b"pickled", "data/a.txt": b"one"}


class Hub(BaseHTTPRequestHandler):
    """One repository, owner/name, of which owner/gated may not be read."""

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def do_GET(self) -> None:
        self._answer(body=True)

    def _answer(self, *, body: bool) -> None:
        path = self.path.partition("?")[0].replace("/datasets/", "/", 1).replace("/api/", "/api/models/", 1)
        path = path.replace("/models/models/", "/models/")
        resolved = f"/owner/name/resolve/{COMMIT}/"
        if path.startswith(resolved) and (content := FILES.get(path.removeprefix(resolved))) is not None:
            self._send(200, content, body)
        elif path.startswith("/api/models/owner/name/tree"):
            listed = [{"type": "file", "path": name, "size": len(content), "oid": sha(content)}
                      for name, content in FILES.items()]  # fmt: skip
            self._send(200, json.dumps(listed).encode(), body)
        elif path.startswith("/api/models/owner/name"):
            siblings = [{"rfilename": name} for name in FILES]
            self._send(
                200,
                json.dumps({"id": "owner/name", "sha": COMMIT, "siblings": siblings}).encode(),
                body,
            )
        elif "gated" in path:
            self._send(403, b"{}", body, {"X-Error-Code": "GatedRepo"})
        else:
            self._send(404 if path != "/" else 200, b"{}", body, {"X-Error-Code": "RepoNotFound"})

    def _send(self, status: int, content: bytes, body: bool, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        own = {"Content-Length": str(len(content)), "ETag": f'"{sha(content)}"', "X-Repo-Commit": COMMIT}
        for name, value in (own | (headers or {})).items():
            self.send_header(name, value)
        self.end_headers()
        if body:
            self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        pass


def sha(content: bytes) -> str:
    return hashlib.sha1(content, usedforsecurity=False).hexdigest()


@pytest.fixture
def url() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def fetched(
    url: str,
    home: Path,
    name: str = "owner/name",
    patterns: str = "None",
    kind: str = "model",
    **variables: str,
) -> str:
    """Fetch in a process of its own, as the library reads its settings when it is imported."""
    code = f"""
from radloop import hub
try:
    print(hub.fetch({name!r}, {kind!r}, {COMMIT!r}, {patterns}))
except hub.HubError as error:
    print("HubError", error)
"""
    own = {"HF_ENDPOINT": url, "HF_HOME": str(home), "HF_HUB_DISABLE_TELEMETRY": "1"} | variables
    clean = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    done = subprocess.run([sys.executable, "-c", code], env=clean | own, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_a_repository_is_fetched_once_and_then_needs_no_network(url: str, tmp_path: Path) -> None:
    folder = Path(fetched(url, tmp_path, patterns="['*.json', '*.txt']"))
    found = {str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file()}
    assert found == {"config.json", "data/a.txt"}
    assert (folder / "config.json").read_bytes() == FILES["config.json"]
    assert fetched("http://127.0.0.1:9", tmp_path, patterns="['*.json', '*.txt']") == str(folder)


def test_no_network_is_said_at_once(tmp_path: Path) -> None:
    started = time.monotonic()
    said = fetched("http://127.0.0.1:9", tmp_path)
    assert said.startswith("HubError http://127.0.0.1:9 cannot be reached (")
    assert "refused" in said
    assert said.endswith("and there is no whole copy here")
    assert time.monotonic() - started < 20  # the library alone: 24 s of new tries beside the import
    said = fetched("http://127.0.0.1:9", tmp_path, HF_HUB_OFFLINE="1")
    assert said == "HubError HF_HUB_OFFLINE is set, and there is no whole copy here"


def test_a_data_set_of_which_the_fetching_was_broken_off_is_not_taken_for_whole(
    url: str, tmp_path: Path
) -> None:
    folder = Path(fetched(url, tmp_path, kind="dataset"))
    assert fetched("http://127.0.0.1:9", tmp_path, kind="dataset") == str(folder)
    (folder.parents[1] / "blobs" / "abc.incomplete").touch()
    said = fetched("http://127.0.0.1:9", tmp_path, kind="dataset")
    assert said.endswith(f"fetching the copy here ({folder}) was broken off")


@pytest.mark.parametrize(("name", "words"), [("owner/none", "RepositoryNotFound"), ("owner/gated", "Gated")])
def test_what_the_hub_refuses_is_said(url: str, tmp_path: Path, name: str, words: str) -> None:
    assert fetched(url, tmp_path, name).startswith(f"HubError {words}")
