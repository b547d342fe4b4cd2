"""Files and folders appear whole or not at all."""

import errno
import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from common.errors import UserError, nearest
from common.files import (
    existing_above,
    read_json,
    read_jsonl,
    sha256_file,
    sha256_json,
    staged_directory,
    write_json,
    write_jsonl,
)


def test_json_is_written_with_sorted_keys_and_replaces_the_old_file(tmp_path):
    path = tmp_path / "deep" / "a.json"
    write_json(path, {"b": 1})
    write_json(path, {"b": 2, "a": "ä"})
    assert path.read_text(encoding="utf-8") == '{\n "a": "ä",\n "b": 2\n}\n'
    assert [item.name for item in path.parent.iterdir()] == ["a.json"]


def test_jsonl_round_trip_and_the_line_of_a_fault(tmp_path):
    path = tmp_path / "rows.jsonl"
    write_jsonl(path, [{"a": 1}, {"a": "日本"}])
    assert read_jsonl(path) == [{"a": 1}, {"a": "日本"}]
    path.write_text('{"a": 1}\n{"a": \n')
    with pytest.raises(UserError, match="line 2"):
        read_jsonl(path)


def test_missing_and_broken_json_name_the_file(tmp_path):
    with pytest.raises(UserError, match=r"gone\.json"):
        read_json(tmp_path / "gone.json")
    (tmp_path / "broken.json").write_text("{")
    with pytest.raises(UserError, match=r"broken\.json"):
        read_json(tmp_path / "broken.json")


def test_hashes_equal_those_of_hashlib(tmp_path):
    content = os.urandom(3 << 20)
    (tmp_path / "x").write_bytes(content)
    assert sha256_file(tmp_path / "x") == hashlib.sha256(content).hexdigest()
    text = json.dumps({"a": [1, "é"], "b": 2}, ensure_ascii=False, separators=(",", ":"))
    assert sha256_json({"b": 2, "a": [1, "é"]}) == hashlib.sha256(text.encode()).hexdigest()


def test_a_staged_directory_replaces_the_old_one_only_when_complete(tmp_path):
    final = tmp_path / "model"
    with staged_directory(final) as folder:
        (folder / "old").write_text("1")
    with pytest.raises(RuntimeError), staged_directory(final) as folder:
        (folder / "new").write_text("2")
        raise RuntimeError
    assert [item.name for item in tmp_path.iterdir()] == ["model"]
    assert [item.name for item in final.iterdir()] == ["old"]
    with staged_directory(final) as folder:
        (folder / "new").write_text("2")
    assert [item.name for item in final.iterdir()] == ["new"]
    assert [item.name for item in tmp_path.iterdir()] == ["model"]


def test_what_a_killed_process_left_aside_is_cleared_by_the_next_writer(tmp_path):
    finished = subprocess.Popen([sys.executable, "-c", ""])
    finished.wait()
    for name in (f".model.{finished.pid}.partial", f".model.{finished.pid}.replaced"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "half").write_text("x")
    (tmp_path / f".a.json.{finished.pid}.partial").write_text("x")
    running = tmp_path / f".model.{os.getppid()}.partial"
    running.mkdir()
    with staged_directory(tmp_path / "model"):
        pass
    write_json(tmp_path / "a.json", {})
    assert {item.name for item in tmp_path.iterdir()} == {"model", "a.json", running.name}


def test_nearest_suggests_or_lists():
    assert nearest("densty", ["density", "scale"]) == " (did you mean 'density'?)"
    assert nearest("xyz", ["b", "a"]) == " (valid: a, b)"
    assert nearest("xyz", []) == ""


def test_the_nearest_folder_that_is_there(tmp_path, monkeypatch):
    assert existing_above(tmp_path / "a" / "b") == tmp_path
    assert existing_above(tmp_path) == tmp_path
    monkeypatch.chdir(tmp_path)
    assert existing_above(Path("a/b")) == tmp_path


@pytest.mark.parametrize("number", [errno.EIO, errno.EROFS, errno.ENOSPC, errno.EDQUOT])
@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_write_that_the_system_refuses_names_the_file_and_leaves_the_old(
    tmp_path, monkeypatch, number, call
):
    path = tmp_path / "a.json"
    write_json(path, 1)

    def refuse(*arguments):
        raise OSError(number, os.strerror(number))

    with monkeypatch.context() as patch, pytest.raises(UserError, match=r"a\.json") as told:
        patch.setattr(os, call, refuse)
        write_json(path, 2)
    assert "\n" not in str(told.value) and "half-written" in str(told.value)
    assert path.read_text() == "1\n" and os.listdir(tmp_path) == ["a.json"]


def test_what_a_library_in_rust_says_of_a_failed_write_is_one_line(tmp_path):
    # In its own words, a number at their end.
    why = f"Error while serializing: I/O error: {os.strerror(errno.EIO)} (os error {errno.EIO})"
    with (
        pytest.raises(UserError, match="model: Input/output error"),
        staged_directory(tmp_path / "model"),
    ):
        raise RuntimeError(why)
    assert not os.listdir(tmp_path)


def test_an_error_of_something_else_is_left_as_it_is(tmp_path):
    for error in (RuntimeError("no number"), FileNotFoundError(errno.ENOENT, "none", "/x/y")):
        with pytest.raises(type(error)), staged_directory(tmp_path / "model"):
            raise error


@pytest.mark.parametrize("text", ["[" * 5000 + "]" * 5000, "9" * 5000])
def test_json_beyond_what_python_reads_is_told_in_a_line(tmp_path, text):
    path = tmp_path / "deep.json"
    path.write_text(text)
    for read in (read_json, read_jsonl):
        with pytest.raises(UserError, match=r"deep\.json") as told:
            read(path)
        assert "\n" not in str(told.value)


def test_half_a_surrogate_comes_back_as_it_was(tmp_path):
    value = json.loads('{"a": "\\ud800 and \\u65e5"}')
    write_json(tmp_path / "a.json", value)
    assert json.loads((tmp_path / "a.json").read_text(encoding="utf-8")) == value
    assert len(sha256_json(value)) == 64
