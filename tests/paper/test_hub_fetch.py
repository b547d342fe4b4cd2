"""Downloads against a small server that speaks the hub's protocol."""

import hashlib
import http.server
import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from common.manifest import check_recorded, read_manifest

ROOT = Path(__file__).resolve().parents[2]
COMMIT = "1" * 40
HEADER = "id\tkind\trepository\trevision\tgb\tparameters\tlicence\tgated\tpickle\tfiles\tnote"


class Hub:
    """One repository's files, and what should go wrong."""

    def __init__(self):
        self.commit = COMMIT
        self.files = {
            "config.json": b'{"model_type": "mistral"}',
            "model.safetensors.index.json": json.dumps(
                {"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}}
            ).encode(),
            "model-1.safetensors": os.urandom(300_000),
            "model-2.safetensors": os.urandom(200_000),
            "consolidated.safetensors": b"the same weights again",
            "original/params.json": b"{}",
            "README.md": b"# a model",
        }
        self.gated = self.gone = False
        self.cut = ""  # a file of which only the first half arrives, once
        self.spoil = ""  # a file that arrives with another byte
        self.served = []

    def listing(self):
        siblings = []
        for name, content in self.files.items():
            blob = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
            about = {"rfilename": name, "size": len(content), "blobId": blob}
            if name.endswith(".safetensors"):
                digest = hashlib.sha256(content).hexdigest()
                about["lfs"] = {"sha256": digest, "size": len(content), "pointerSize": 100}
            siblings.append(about)
        return {"id": "owner/name", "sha": self.commit, "siblings": siblings}


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: Hub

    def log_message(self, *_):
        pass

    def answer(self, status, content=b"", **headers):
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        if "Content_Length" not in headers:
            self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def do_HEAD(self):
        self.do_GET()

    def do_GET(self):
        hub = self.hub
        if hub.gone:
            return self.answer(404, b"{}", X_Error_Code="RepoNotFound")
        if hub.gated:
            return self.answer(403, b"{}", X_Error_Code="GatedRepo", X_Error_Message="gated")
        if self.path.startswith("/api/models/owner/name"):
            return self.answer(
                200, json.dumps(hub.listing()).encode(), Content_Type="application/json"
            )
        name = self.path.partition(f"/resolve/{hub.commit}/")[2].partition("?")[0]
        if name not in hub.files:
            return self.answer(404, b"", X_Error_Code="EntryNotFound")
        content = hub.files[name]
        if self.command == "GET":
            hub.served.append(name)
        about = {
            "ETag": f'"{hashlib.sha256(content).hexdigest()}"',
            "X_Repo_Commit": hub.commit,
            "Accept_Ranges": "bytes",
        }
        if name == hub.spoil:
            content = bytes([content[0] ^ 1]) + content[1:]
        start = 0
        if asked := self.headers.get("Range"):
            start = int(asked.removeprefix("bytes=").partition("-")[0])
            about["Content_Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
        part = content[start:]
        if name == hub.cut and self.command == "GET":
            about["Content_Length"] = str(len(part))
            self.close_connection = True
            return self.answer(206 if start else 200, part[: len(part) // 2], **about)
        self.answer(206 if start else 200, part, **about)


@pytest.fixture
def hub():
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    Handler.hub = Hub()
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    Handler.hub.address = f"http://127.0.0.1:{server.server_port}"
    yield Handler.hub
    server.shutdown()
    server.server_close()


def fetch(hub, folder, revision="", pickle="no", **environment):
    row = ["m", "model", "owner/name", revision, "", "", "", "no", pickle, "", ""]
    table = folder / "hub.tsv"
    table.write_text(HEADER + "\n" + "\t".join(row) + "\n")
    command = [sys.executable, "-m", "paper", "fetch", "m", "--out", str(folder / "m")]
    return subprocess.run(
        [*command, "--table", str(table)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        env={
            **{k: v for k, v in os.environ.items() if not k.startswith(("HF_", "TRANSFORMERS_"))},
            "HF_ENDPOINT": hub.address,
            "HF_HOME": str(folder / "home"),
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
            **environment,
        },
    )


def test_the_first_download_is_recorded_and_the_next_is_none(hub, tmp_path):
    done = fetch(hub, tmp_path)
    assert done.returncode == 0, done.stderr
    wanted = {
        "config.json",
        "model.safetensors.index.json",
        "model-1.safetensors",
        "model-2.safetensors",
    }
    assert {path.name for path in (tmp_path / "m").iterdir()} == wanted | {"manifest.json"}
    lock = json.loads((tmp_path / "hub.lock.json").read_text())["m"]
    assert lock["revision"] == COMMIT
    for name in wanted:
        digest = hashlib.sha256(hub.files[name]).hexdigest()
        assert (tmp_path / "m" / name).read_bytes() == hub.files[name]
        assert lock["files"][name] == {"sha256": digest, "bytes": len(hub.files[name])}
    check_recorded(tmp_path / "m")
    about = read_manifest(tmp_path / "m")
    assert about["extra"]["sha256"] == {name: lock["files"][name]["sha256"] for name in wanted}
    assert about["outputs"]["model-1.safetensors"].startswith("blake3:")
    hub.gone = True  # what is whole needs no network
    again = fetch(hub, tmp_path)
    assert again.returncode == 0, again.stderr
    # Earlier versions recorded these hashes alone; what they fetched stays whole.
    manifest = tmp_path / "m" / "manifest.json"
    older = {name: own for name, own in about.items() if name not in ("extra", "sha256")}
    manifest.write_text(json.dumps(older | {"outputs": about["extra"]["sha256"]}))
    check_recorded(tmp_path / "m")
    again = fetch(hub, tmp_path)
    assert again.returncode == 0, again.stderr


def test_a_cut_download_goes_on(hub, tmp_path):
    hub.cut = "model-1.safetensors"
    cut = fetch(hub, tmp_path)
    assert cut.returncode == 2
    assert cut.stderr.splitlines()[-1].endswith("run the same command again"), cut.stderr
    assert not (tmp_path / "m" / "manifest.json").exists()
    assert not (tmp_path / "hub.lock.json").exists()
    hub.cut, hub.served = "", []
    done = fetch(hub, tmp_path)
    assert done.returncode == 0, done.stderr
    assert "config.json" not in hub.served, "what was whole is not fetched again"
    assert (tmp_path / "m" / "model-1.safetensors").read_bytes() == hub.files["model-1.safetensors"]


def test_a_spoilt_file_is_refused_and_fetched_again(hub, tmp_path):
    hub.spoil = "model-2.safetensors"
    spoilt = fetch(hub, tmp_path)
    assert spoilt.returncode == 2
    assert "model-2.safetensors arrived damaged" in spoilt.stderr
    hub.spoil = ""
    assert fetch(hub, tmp_path).returncode == 0


def test_a_repository_that_moved_on_is_refused_by_the_lock(hub, tmp_path):
    assert fetch(hub, tmp_path).returncode == 0
    (tmp_path / "m" / "manifest.json").unlink()
    hub.files["model-1.safetensors"] = os.urandom(300_000)
    done = fetch(hub, tmp_path)
    assert done.returncode == 2
    assert "model-1.safetensors is not what" in done.stderr
    other = fetch(hub, tmp_path, revision="2" * 40)
    assert other.returncode == 2
    assert "the table pins revision 222222222222" in other.stderr


def test_gated_gone_and_offline_are_one_line_each(hub, tmp_path):
    hub.gated = True
    gated = fetch(hub, tmp_path)
    assert gated.returncode == 2
    assert "is gated: accept its licence" in gated.stderr and "HF_TOKEN" in gated.stderr
    hub.gated, hub.gone = False, True
    gone = fetch(hub, tmp_path)
    assert gone.returncode == 2 and "is not on the hub, or hidden" in gone.stderr
    offline = fetch(hub, tmp_path, HF_HUB_OFFLINE="1")
    assert offline.returncode == 2 and "HF_HUB_OFFLINE is set" in offline.stderr
    for done in (gated, gone, offline):
        assert done.stderr.count("\n") == 1, done.stderr


def test_pickles_are_taken_only_if_the_table_says_so(hub, tmp_path):
    for name in list(hub.files):
        if "safetensors" in name:
            del hub.files[name]
    hub.files["pytorch_model.bin"] = b"weights"
    refused = fetch(hub, tmp_path)
    assert refused.returncode == 2 and "only as pickles" in refused.stderr
    done = fetch(hub, tmp_path, pickle="yes")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "m" / "pytorch_model.bin").read_bytes() == b"weights"
