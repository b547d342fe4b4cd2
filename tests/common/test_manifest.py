"""Manifests hold hashes, parameters and versions, and nothing that changes by itself."""

import hashlib
import importlib.metadata
import time

import pytest

from common.cost import measure
from common.errors import UserError
from common.files import read_json
from common.manifest import check_recorded, read_manifest, recorded_hash, write_manifest


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


def test_a_manifest_that_was_changed_is_refused_until_accepted(tmp_path):
    import json

    import pytest

    from common.errors import UserError
    from common.manifest import accept, check_recorded

    (tmp_path / "a").write_text("1")
    path = tmp_path / "manifest.json"
    write_manifest(path, kind="x", parameters={"samples": 8}, outputs={"a": tmp_path / "a"})
    right = path.read_text()
    record = json.loads(right)
    path.write_text(json.dumps(record))  # in another form, the same content
    assert read_manifest(tmp_path)["parameters"] == {"samples": 8}
    path.write_text(right.replace('"samples": 8', '"samples": 9'))
    for read in (read_manifest, check_recorded):
        with pytest.raises(UserError, match=r"manifest\.json: was changed or damaged") as told:
            read(tmp_path)
    named = str(told.value).rpartition("accept ")[2]
    (line,) = accept(named)
    assert str(path) in line and read_manifest(tmp_path)["parameters"] == {"samples": 9}
    assert read_manifest(tmp_path)["extra"]["accepted"] == {"manifest.json": record["sha256"]}
    assert accept(tmp_path) == []
    # One without a seal, as earlier versions wrote it, is read as it is.
    del record["sha256"]
    path.write_text(json.dumps(record | {"seed": 5}))
    assert read_manifest(tmp_path)["seed"] == 5


def test_what_cannot_be_read_is_not_accepted(tmp_path):
    """A name that no file can have, and a folder in a file's place."""
    import json

    import pytest

    from common.errors import UserError
    from common.manifest import accept

    path = tmp_path / "manifest.json"
    (tmp_path / "folder").mkdir()
    for name in ("9" * 300, "folder"):
        path.write_text(json.dumps({"kind": "x", "outputs": {name: "0" * 64}}))
        before = path.read_bytes()
        with pytest.raises(
            UserError, match=f"{name}: cannot be read .*not accepted; make it readable, or"
        ):
            accept(tmp_path)
        assert path.read_bytes() == before


def test_a_manifest_of_another_file_vouches_for_nothing(tmp_path):
    import shutil

    import pytest

    from common.errors import UserError
    from common.manifest import check_recorded

    for name in ("scores", "smoke"):
        (tmp_path / f"{name}.json").write_text(f'"{name}"')
        manifest = tmp_path / f"{name}.manifest.json"
        outputs = {f"{name}.json": tmp_path / f"{name}.json"}
        write_manifest(manifest, kind=name, parameters={}, outputs=outputs)
        check_recorded(tmp_path / f"{name}.json")
    shutil.copy(tmp_path / "smoke.manifest.json", tmp_path / "scores.manifest.json")
    with pytest.raises(UserError, match=r"scores\.manifest\.json: does not record"):
        check_recorded(tmp_path / "scores.json")


@pytest.mark.parametrize("name", ["9" * 300, "a/" + "9" * 300 + "/b", "x\0y", "a" * 5000, "."])
def test_a_name_that_no_file_can_have_is_recorded_nowhere(tmp_path, name):
    """Names of tasks come from score files, which may be damaged."""
    (tmp_path / "out.txt").write_text("out")
    outputs = {"out.txt": tmp_path / "out.txt"}
    write_manifest(tmp_path / "manifest.json", kind="data", parameters={}, outputs=outputs)
    assert recorded_hash(tmp_path / f"{name}.jsonl") is None
    check_recorded(tmp_path / f"{name}.jsonl")


def test_a_manifest_with_any_line_twice_is_refused(tmp_path):
    path = tmp_path / "manifest.json"
    about = {"set": {"density": 0.5, "weights": [1, 1]}, "layers": [], "name": "x"}
    write_manifest(path, kind="merge", parameters=about, inputs={"a": "b"}, seed=0)
    lines = path.read_text().splitlines(keepends=True)
    assert len(lines) > 20
    for number, line in enumerate(lines):
        path.write_text("".join([*lines[:number], line, *lines[number:]]))
        with pytest.raises(UserError, match=r"manifest\.json: (not valid JSON|was changed)"):
            read_manifest(path)


def test_a_name_twice_is_refused_where_it_is_asked(tmp_path):
    path = tmp_path / "x.json"
    path.write_text('{"a": [{"b": 1, "c": 2, "b": 1}]}')
    assert read_json(path) == {"a": [{"b": 1, "c": 2}]}
    with pytest.raises(UserError, match="'b' is there twice"):
        read_json(path, unique=True)
