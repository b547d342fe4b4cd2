"""Hashes are recalled only for files that are as they were."""

import hashlib
import itertools
import json
import multiprocessing
import os
import time

import pytest

from common import hashes
from common.errors import UserError


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv(hashes.VARIABLE, str(tmp_path / "cache" / "hashes.json"))
    return tmp_path / "cache" / "hashes.json"


@pytest.fixture
def settled(monkeypatch):
    """Let the files of this test count as old."""
    monkeypatch.setattr(hashes, "_SETTLED_NS", -1)


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "weights"
    path.write_bytes(bytes(range(256)) * 50)
    return path


def plant(cache, file):
    """Put a wrong hash in the cache's entry, so that recalling it shows."""
    entries = json.loads(cache.read_text())
    entries[os.path.realpath(file)][-1] = "0" * 64
    cache.write_text(json.dumps(entries))


def right(file):
    return hashlib.sha256(file.read_bytes()).hexdigest()


def test_a_hash_is_computed_once(cache, settled, file):
    assert hashes.hash_cached(file, hashes.SHA256) == right(file)
    plant(cache, file)
    assert hashes.hash_cached(file, hashes.SHA256) == "0" * 64
    assert hashes.hash_cached(str(file), hashes.SHA256) == "0" * 64


def test_a_file_longer_than_a_block_is_hashed_whole(cache, file, monkeypatch):
    monkeypatch.setattr(hashes, "_BLOCK", 1000)
    assert hashes.hash_cached(file, hashes.SHA256) == right(file)


def test_a_link_is_known_by_what_it_points_to(cache, settled, file, tmp_path):
    (tmp_path / "link").symlink_to(file)
    assert hashes.hash_cached(tmp_path / "link", hashes.SHA256) == right(file)
    assert list(json.loads(cache.read_text())) == [os.path.realpath(file)]


def test_any_change_is_noticed(cache, settled, file):
    hashes.hash_cached(file, hashes.SHA256)
    plant(cache, file)
    before = file.stat()
    content = bytearray(file.read_bytes())
    content[5] ^= 1
    time.sleep(0.01)
    with open(file, "r+b") as stream:  # same size, same inode
        stream.write(content)
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))  # and time set back
    assert hashes.hash_cached(file, hashes.SHA256) == right(file)
    plant(cache, file)
    replacement = file.with_name("new")
    replacement.write_bytes(content)
    os.utime(replacement, ns=(before.st_atime_ns, before.st_mtime_ns))
    os.replace(replacement, file)
    assert hashes.hash_cached(file, hashes.SHA256) == right(file)


def test_a_fresh_file_is_not_remembered(cache, file):
    assert hashes.hash_cached(file, hashes.SHA256) == right(file)
    assert not cache.exists()


def test_a_file_from_the_future_is_not_remembered(cache, file):
    os.utime(file, ns=(0, time.time_ns() + 10**12))
    assert hashes.hash_cached(file, hashes.SHA256) == right(file)
    assert not cache.exists()


@pytest.mark.parametrize(
    "content", ["", "{", "[]", "5", '{"WHERE": 5}', '{"WHERE": []}', '{"WHERE": [1, 2, "x"]}', "\0"]
)
def test_a_damaged_cache_is_ignored_and_mended(cache, settled, file, content):
    cache.parent.mkdir()
    cache.write_text(content.replace("WHERE", os.path.realpath(file)))
    assert hashes.hash_cached(file, hashes.SHA256) == right(file)
    assert json.loads(cache.read_text())[os.path.realpath(file)][-1] == right(file)


def test_a_recalled_value_that_is_no_hash_is_ignored(cache, settled, file):
    hashes.hash_cached(file, hashes.SHA256)
    cache.write_text(cache.read_text().replace(right(file), "../../etc/passwd"))
    assert hashes.hash_cached(file, hashes.SHA256) == right(file)


def test_the_cache_can_be_off_and_cannot_stop_work(cache, settled, file, monkeypatch):
    monkeypatch.setenv(hashes.VARIABLE, "off")
    assert hashes.hash_cached(file, hashes.SHA256) == right(file)
    assert not cache.exists()
    monkeypatch.setenv(hashes.VARIABLE, str(file / "below" / "a" / "file.json"))
    assert hashes.hash_cached(file, hashes.SHA256) == right(file)


def test_the_cache_lies_where_the_standard_says(settled, file, tmp_path, monkeypatch):
    monkeypatch.delenv(hashes.VARIABLE, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    for folder, where in [
        (str(tmp_path / "xdg"), tmp_path / "xdg"),
        ("relative", tmp_path / "home" / ".cache"),
        ("", tmp_path / "home" / ".cache"),
    ]:
        monkeypatch.setenv("XDG_CACHE_HOME", folder)
        hashes.hash_cached(file, hashes.SHA256)
        assert (where / "merging-in-a-bottle" / "hashes.json").is_file()


def test_the_oldest_entries_make_room(cache, settled, tmp_path, monkeypatch):
    monkeypatch.setattr(hashes, "_MOST", 3)
    for number in range(5):
        (tmp_path / str(number)).write_text(str(number))
        hashes.hash_cached(tmp_path / str(number), hashes.SHA256)
    kept = [os.path.basename(path) for path in json.loads(cache.read_text())]
    assert kept == ["2", "3", "4"]


def _hash_all(files):
    hashes._SETTLED_NS = -1
    for file in files:
        hashes.hash_cached(file, hashes.SHA256)


def test_processes_do_not_lose_each_others_entries(cache, tmp_path):
    groups = [[tmp_path / f"{group}-{n}" for n in range(8)] for group in range(4)]
    for path in itertools.chain(*groups):
        path.write_text(path.name)
    with multiprocessing.get_context("fork").Pool(4) as pool:
        pool.map(_hash_all, groups)
    entries = json.loads(cache.read_text())
    assert len(entries) == 32
    for path in itertools.chain(*groups):
        assert entries[os.path.realpath(path)][-1] == right(path)


def test_a_missing_file_is_one_line(cache, tmp_path):
    with pytest.raises(UserError, match="cannot be read"):
        hashes.hash_cached(tmp_path / "none", hashes.SHA256)
