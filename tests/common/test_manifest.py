"""Manifests hold hashes, parameters and versions, and nothing that changes by itself."""

import hashlib
import importlib.metadata
import time

from common.cost import measure
from common.files import read_json
from common.manifest import read_manifest, write_manifest


def test_a_manifest_hashes_files_and_stands_for_its_folder(tmp_path):
    (tmp_path / "in.txt").write_text("in")
    (tmp_path / "out.txt").write_text("out")
    folder = tmp_path / "model"
    write_manifest(folder / "manifest.json", kind="base", parameters={}, seed=1)
    manifest = write_manifest(
        tmp_path / "manifest.json",
        kind="merge",
        parameters={"density": 0.5},
        inputs={"text": tmp_path / "in.txt", "model": folder, "given": "abc"},
        outputs={"out.txt": tmp_path / "out.txt"},
        seed=0,
        code=("merges/methods/ties.py",),
    )
    assert manifest["inputs"] == {
        "text": hashlib.sha256(b"in").hexdigest(),
        "model": hashlib.sha256((folder / "manifest.json").read_bytes()).hexdigest(),
        "given": "abc",
    }
    assert manifest["outputs"] == {"out.txt": hashlib.sha256(b"out").hexdigest()}
    assert manifest["versions"]["numpy"] == importlib.metadata.version("numpy")
    assert read_manifest(tmp_path) == manifest


def test_equal_work_gives_equal_bytes(tmp_path):
    for name in ("a", "b"):
        write_manifest(tmp_path / name, kind="data", parameters={"x": 1}, seed=3)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_cost_counts_and_measures(tmp_path):
    with measure(tmp_path / "cost.json") as cost:
        cost.count(tokens=3)
        cost.count(tokens=4, flops=1e9)
        start = time.process_time()
        while time.process_time() - start < 0.1:  # a kernel may count in steps of 10 ms
            sum(i * i for i in range(1_000))
    written = read_json(tmp_path / "cost.json")
    assert written["counted"] == {"tokens": 7, "flops": 1e9}
    assert 0.05 < written["cpu_s"] < 60 and written["peak_rss_mb"] > 1
