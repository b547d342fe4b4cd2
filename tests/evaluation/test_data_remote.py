"""Downloads against servers on loopback: whole, cut, missing, of another revision."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from common.errors import UserError
from common.files import read_json, sha256_file
from common.sources import ROOT
from evaluation.data import build, remote
from evaluation.data.sources import File, Source, load_sources

TRUTHFULQA = load_sources()["okapi_de/truthfulqa"]
QUESTION = {
    "question": "Ist die Erde flach?",
    "mc1_targets_choices": ["Nein.", "Ja."],
    "mc1_targets_labels": [1, 0],
    "mc2_targets_choices": ["Nein.", "Ja."],
    "mc2_targets_labels": [1, 0],
}
COPA = b"ID\tsentence\tquestion\t1\t2\tAnswer\n1\t\xea\xb8\x80\t\xea\xb2\xb0\xea\xb3\xbc\ta\tb\t2\n"


@contextlib.contextmanager
def serving(files: dict[str, bytes], missing: int = 0, revision: str = "") -> Iterator[tuple]:
    """Serve files on loopback as GitHub and the hub do.

    Args:
        files: Content by path.
        missing: How many bytes of each never come.
        revision: The commit that the hub says a file is of.

    Yields:
        The address, and the list of what was asked for.
    """
    asked: list[tuple[str, str]] = []

    class Handler(BaseHTTPRequestHandler):
        def answer(self) -> None:
            asked.append((self.command, self.path))
            content = files.get(self.path)
            self.send_response(200 if content is not None else 404)
            content = content or b""
            self.send_header("Content-Length", str(len(content)))
            self.send_header("ETag", '"0123456789abcdef"')
            self.send_header("X-Repo-Commit", revision)
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(content[: len(content) - missing])
            self.close_connection = True

        do_GET = do_HEAD = answer

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", asked
    finally:
        server.shutdown()
        server.server_close()


def copa() -> Source:
    known = load_sources()["kobest/copa"]
    file = File("KoBEST/copa.tsv", 1)
    return replace(known, host="github", files={"items": file}, local={}, optional=())


def test_a_file_of_a_repository_comes_whole(tmp_path, monkeypatch):
    source = copa()
    path = f"/{source.repository}/{source.revision}/KoBEST/copa.tsv"
    with serving({path: COPA}) as (address, asked):
        monkeypatch.setattr(remote, "_RAW", address)
        build.build([source], None, tmp_path)
    assert asked == [("GET", path)]
    manifest = read_json(tmp_path / "test/kobest/manifest.json")
    (tmp_path / "copy").write_bytes(COPA)
    read = manifest["extra"]["tasks"]["copa"]["files"]["items"]
    assert read == {"path": "KoBEST/copa.tsv", "sha256": sha256_file(tmp_path / "copy")}


@pytest.mark.parametrize(
    ("there", "missing", "reason"),
    [(True, 1, "IncompleteRead"), (True, len(COPA), "IncompleteRead"), (False, 0, "Not Found")],
)
def test_a_cut_or_missing_file_leaves_nothing(tmp_path, monkeypatch, there, missing, reason):
    source = copa()
    path = f"/{source.repository}/{source.revision}/KoBEST/copa.tsv"
    with serving({path: COPA} if there else {}, missing) as (address, _):
        monkeypatch.setattr(remote, "_RAW", address)
        with pytest.raises(UserError, match=reason) as caught:
            build.build([source], None, tmp_path)
    assert "\n" not in str(caught.value)
    assert "kobest/copa" in str(caught.value)
    assert source.revision in str(caught.value)
    assert "connect and try again, or give local copies: --source DIR" in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_a_server_that_is_not_there_is_told(tmp_path, monkeypatch):
    with serving({}) as (address, _):
        pass
    monkeypatch.setattr(remote, "_RAW", address)
    with pytest.raises(UserError, match=r"could not be downloaded \(URLError: .*refused"):
        build.build([copa()], None, tmp_path)


def run_hub(tmp_path: Path, address: str) -> subprocess.CompletedProcess:
    """Run the command with a hub on loopback."""
    environment = {
        k: v for k, v in os.environ.items() if not k.startswith(("HF_", "BOTTLE_", "TRANSFORMERS_"))
    }
    environment |= {"HF_ENDPOINT": address, "HF_HOME": str(tmp_path / "hub")}
    environment |= {"PYTHONPATH": str(ROOT), "HF_HUB_DISABLE_XET": "1", "NO_PROXY": "*"}
    environment |= {"HF_HUB_ETAG_TIMEOUT": "60", "HF_HUB_DOWNLOAD_TIMEOUT": "60"}
    command = ["-m", "evaluation", "data", "--suite", "okapi_de/truthfulqa", "--out", "out"]
    return subprocess.run(
        [sys.executable, *command],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
    )


HUB_PATH = (
    f"/datasets/{TRUTHFULQA.repository}/resolve/{TRUTHFULQA.revision}/"
    f"{TRUTHFULQA.files['items'].path}"
)


def test_a_file_of_the_hub_comes_at_its_pinned_revision(tmp_path):
    rows = [json.dumps(QUESTION | {"question": f"Frage {n}?"}) for n in range(788)]
    content = ("\n".join(rows) + "\n").encode()
    with serving({HUB_PATH: content}, revision=TRUTHFULQA.revision) as (address, asked):
        done = run_hub(tmp_path, address)
    assert done.returncode == 0, done.stderr
    assert "788 items" in done.stdout
    assert {path for _, path in asked if path.startswith("/datasets/")} == {HUB_PATH}
    manifest = read_json(tmp_path / "out/test/okapi_de/manifest.json")
    assert manifest["extra"]["tasks"]["truthfulqa"]["revision"] == TRUTHFULQA.revision


def test_a_file_of_another_length_is_told_in_one_line(tmp_path):
    content = (json.dumps(QUESTION) + "\n").encode() * 787
    with serving({HUB_PATH: content}, revision=TRUTHFULQA.revision) as (address, _):
        done = run_hub(tmp_path, address)
    assert done.returncode != 0
    assert "gives 787 rows where 788 are expected" in done.stderr
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_a_file_that_the_hub_lacks_is_told_in_one_line(tmp_path):
    with serving({}, revision=TRUTHFULQA.revision) as (address, _):
        done = run_hub(tmp_path, address)
    assert done.returncode != 0
    assert done.stderr.startswith("error: okapi_de/truthfulqa: alexandrainst/m_truthfulqa/")
    assert done.stderr.count("\n") == 1
    assert not (tmp_path / "out").exists()
