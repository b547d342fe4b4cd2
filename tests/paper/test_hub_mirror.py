"""A folder that mirrors repositories serves as the hub does, without a network."""

import pytest
from huggingface_hub.utils.sha import git_hash

from common.errors import UserError
from paper.hub.fetch import fetch
from paper.hub.lock import locked
from paper.hub.places import Mirror
from paper.hub.table import Reference


def dataset(**changed):
    about = {"id": "d", "kind": "dataset", "repository": "owner/name", "revision": "", "gb": None}
    about |= {"parameters": None, "licence": "", "gated": False, "pickle": False}
    return Reference(**about | {"files": ("data/*.json",), "note": ""} | changed)


@pytest.fixture
def mirror(tmp_path):
    folder = tmp_path / "mirror" / "owner" / "name"
    (folder / "data").mkdir(parents=True)
    (folder / "data" / "train.json").write_text("[1]")
    (folder / "data" / "readme.txt").write_text("no data")
    (folder / "data" / "dataset_infos.json").write_text('{"about": "no rows"}')
    return tmp_path / "mirror"


def test_what_the_patterns_name_is_copied_and_locked(mirror, tmp_path):
    lock = tmp_path / "lock.json"
    got = fetch(dataset(), tmp_path / "d", lock, Mirror(mirror))
    assert list(got.files) == ["data/train.json"]
    assert (tmp_path / "d" / "data" / "train.json").read_text() == "[1]"
    assert locked(lock, dataset()) == got


def test_a_changed_mirror_is_refused_by_the_lock(mirror, tmp_path):
    lock = tmp_path / "lock.json"
    fetch(dataset(), tmp_path / "d", lock, Mirror(mirror))
    (mirror / "owner" / "name" / "data" / "train.json").write_text("[2]")
    with pytest.raises(UserError, match="a mirror needs its own lock"):
        fetch(dataset(), tmp_path / "other", lock, Mirror(mirror))


def test_what_is_not_there_is_one_line(mirror, tmp_path):
    with pytest.raises(UserError, match="the mirror has no"):
        fetch(dataset(repository="owner/other"), tmp_path / "d", tmp_path / "l", Mirror(mirror))
    with pytest.raises(UserError, match=r"has no file like \*.parquet"):
        fetch(dataset(files=("*.parquet",)), tmp_path / "d", tmp_path / "l", Mirror(mirror))


def test_an_index_that_names_no_shards_is_one_line(mirror, tmp_path):
    folder = mirror / "owner" / "name"
    (folder / "config.json").write_text("{}")
    model = dataset(kind="model", files=("config.json",))
    for index in ("{", "[]", "{}", '{"weight_map": 3}'):
        (folder / "model.safetensors.index.json").write_text(index)
        with pytest.raises(UserError, match="of owner/name names no shards"):
            fetch(model, tmp_path / "m", tmp_path / "l", Mirror(mirror))


def test_a_manifest_of_something_else_is_no_finished_download(mirror, tmp_path):
    lock, folder = tmp_path / "lock.json", tmp_path / "d"
    fetch(dataset(), folder, lock, Mirror(mirror))
    (folder / "manifest.json").write_text("{}")
    (folder / "data" / "train.json").unlink()
    fetch(dataset(), folder, lock, Mirror(mirror))
    assert (folder / "data" / "train.json").read_text() == "[1]"


def test_the_git_hash_is_gits(tmp_path):
    (tmp_path / "a").write_text("hello\n")
    # printf 'hello\n' | git hash-object --stdin
    assert git_hash((tmp_path / "a").read_bytes()) == "ce013625030ba8dba906f756967f9e9ca394464a"
