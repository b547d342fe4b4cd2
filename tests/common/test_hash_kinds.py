"""Weights are hashed with BLAKE3, all else with SHA-256; records say which, and old ones hold."""

import hashlib
import json
import sys
from pathlib import Path
from subprocess import run

import pytest
import torch
from safetensors.torch import save_file

from checkpoints.reading import Checkpoint
from checkpoints.writing import write_weights
from common import hashes
from common.errors import UserError
from common.hashes import BLAKE3, SHA256
from common.manifest import (
    accept,
    check_recorded,
    fingerprint,
    has_fingerprint,
    read_manifest,
    write_manifest,
)

WEIGHTS = "model.safetensors"


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv(hashes.VARIABLE, str(tmp_path / "cache.json"))
    monkeypatch.setattr(hashes, "_SETTLED_NS", -1)
    return tmp_path / "cache.json"


def record(folder: Path, old: bool = False) -> Path:
    """Give a folder a manifest, or one as it was when all files were hashed with SHA-256."""
    files = {path.name: path for path in folder.iterdir() if path.name != "manifest.json"}
    write_manifest(folder / "manifest.json", kind="expert", parameters={}, outputs=files)
    if old:
        about = json.loads((folder / "manifest.json").read_text())
        del about["sha256"]
        for name, path in files.items():
            about["outputs"][name] = hashlib.sha256(path.read_bytes()).hexdigest()
        (folder / "manifest.json").write_text(json.dumps(about))
    return folder


@pytest.fixture
def model(make_model, tmp_path) -> Path:
    return make_model(tmp_path / "model")


def old_fingerprint(folder: Path) -> str:
    digest = hashlib.sha256((folder / WEIGHTS).read_bytes()).hexdigest()
    return hashlib.sha256(f"{WEIGHTS} {digest}\n".encode()).hexdigest()


# From the algorithm's published test vectors: the bytes 0 to 250 over and over.
@pytest.mark.parametrize(
    ("length", "digest"),
    [
        (0, "af1349b9f5f9a1a6a0404dea36dcc9499bcb25c9adc112b7cc9a93cae41f3262"),
        (1025, "d00278ae47eb27b34faecf67b4fe263f82d5412916c1ffd97c8cb7fb814b8444"),
    ],
)
def test_the_hash_is_the_one_that_was_published(tmp_path, length, digest, monkeypatch):
    path = tmp_path / "file"
    path.write_bytes((bytes(range(251)) * 5)[:length])
    monkeypatch.setattr(hashes, "_BLOCK", 1000)
    for found in (hashes.hash_file(path, BLAKE3), hashes.hash_cached(path, BLAKE3)):
        assert found == f"blake3:{digest}"


def test_the_cache_keeps_both_kinds(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"values")
    found = {kind: hashes.hash_cached(path, kind) for kind in (SHA256, BLAKE3)}
    assert found[SHA256] == hashlib.sha256(b"values").hexdigest()
    for kind in (SHA256, BLAKE3, SHA256):
        assert hashes.hash_cached(path, kind) == found[kind] == hashes.hash_file(path, kind)


def test_an_entry_of_the_other_kind_is_not_recalled(tmp_path, cache):
    path = tmp_path / "file"
    path.write_bytes(b"values")
    right = hashes.hash_cached(path, BLAKE3)
    (entry,) = json.loads(cache.read_text()).items()
    for wrong in ("0" * 64, "blake3:" + "0" * 63, "md5:" + "0" * 64):
        cache.write_text(json.dumps({entry[0]: [*entry[1][:-1], wrong]}))
        assert hashes.hash_cached(path, BLAKE3) == right


def test_a_new_record_says_the_algorithm_of_weights_alone(model):
    outputs = read_manifest(record(model))["outputs"]
    assert outputs[WEIGHTS] == hashes.hash_file(model / WEIGHTS, BLAKE3)
    config = hashlib.sha256((model / "config.json").read_bytes()).hexdigest()
    assert outputs["config.json"] == config


@pytest.mark.parametrize("old", [False, True])
@pytest.mark.parametrize("large", [False, True])
def test_weights_are_compared_by_the_algorithm_of_their_record(tmp_path, old, large):
    (tmp_path / "m").mkdir()
    path = tmp_path / "m" / WEIGHTS
    save_file({"w": torch.zeros(1 << 19 if large else 8)}, path)
    record(path.parent, old)
    check_recorded(path.parent)
    right = path.read_bytes()
    for place in (0, len(right) // 2, len(right) - 1):
        path.write_bytes(right[:place] + bytes([right[place] ^ 4]) + right[place + 1 :])
        with pytest.raises(UserError, match=rf"{WEIGHTS}: was changed, damaged or exchanged"):
            check_recorded(path.parent)
    # What is accepted stays of the record's kind, so that all of a model's files are of one.
    assert len(accept(path.parent)) == 1
    check_recorded(path.parent)
    found = read_manifest(path.parent)["outputs"][WEIGHTS]
    assert found == hashes.hash_file(path, SHA256 if old else BLAKE3)


@pytest.mark.parametrize("unknown", ["sha3:" + "0" * 64, "blake2:ab", ":", "BLAKE3:" + "0" * 64])
def test_an_unknown_algorithm_is_refused_in_one_line(model, unknown):
    about = json.loads((record(model, old=True) / "manifest.json").read_text())
    about["outputs"][WEIGHTS] = unknown
    (model / "manifest.json").write_text(json.dumps(about))
    for use in (check_recorded, accept, Checkpoint):
        with pytest.raises(UserError, match=r"manifest\.json: .*unknown kind.*make again") as told:
            use(model)
        assert "\n" not in str(told.value)
    assert not Checkpoint(copied(model)).has_fingerprint(unknown)
    assert not has_fingerprint(unknown, about["outputs"], model)


def copied(model: Path) -> Path:
    """Return a copy without a manifest, as somebody else's model is."""
    other = model.with_name("copy")
    other.mkdir(exist_ok=True)
    for path in model.iterdir():
        if path.name != "manifest.json":
            (other / path.name).write_bytes(path.read_bytes())
    return other


def test_equal_weights_have_one_fingerprint_whoever_wrote_them(model):
    without = Checkpoint(copied(model)).fingerprint
    assert without.startswith("blake3:") and len(without) == 7 + 64
    for old in (False, True):
        record(model, old)
        assert Checkpoint(model).fingerprint == without
    assert fingerprint(read_manifest(record(model))["outputs"]) == without
    wrote = model.with_name("wrote")
    wrote.mkdir()
    written = write_weights(wrote, Checkpoint(model).state_dict())
    hashed = {name: hashes.hash_file(wrote / name, BLAKE3) for name in written}
    assert written == hashed


def test_a_fingerprint_is_what_the_card_says_to_do_by_hand(model):
    digest = hashes.hash_file(model / WEIGHTS, BLAKE3)
    text = model.with_name("text")
    text.write_text(f"{WEIGHTS} {digest}\n")
    assert Checkpoint(model).fingerprint == hashes.hash_file(text, BLAKE3)


def test_an_earlier_fingerprint_is_still_compared(model):
    earlier = old_fingerprint(model)
    for old in (False, True, None):
        if old is not None:
            record(model, old)
        read = Checkpoint(model if old is not None else copied(model))
        assert read.has_fingerprint(earlier) and read.has_fingerprint(read.fingerprint)
        for other in ("0" * 64, "blake3:" + "0" * 64, earlier[:-1], None, [], ""):
            assert not read.has_fingerprint(other)


@pytest.mark.parametrize("old", [False, True])
def test_a_manifest_and_a_fingerprint_of_two_kinds_are_compared_by_the_files(model, old):
    outputs = read_manifest(record(model, old))["outputs"]
    both = old_fingerprint(model), Checkpoint(model).fingerprint
    assert [has_fingerprint(own, outputs, model) for own in both] == [True, True]
    for other in ("0" * 64, "blake3:" + "0" * 64, "", None):
        assert has_fingerprint(other, outputs, model) is False
    assert has_fingerprint(both[0], {"config.json": "0" * 64}, model) is None
    (model / WEIGHTS).unlink()  # of one kind no file is read; of two nothing can be said
    assert [has_fingerprint(own, outputs, model) for own in both] == (
        [True, None] if old else [None, True]
    )


def test_readers_see_the_algorithm():
    assert hashes.named("ab12") == "sha256 ab12" and hashes.named("blake3:ab12") == "blake3 ab12"


def test_commands_that_hash_no_weights_do_not_load_the_library():
    code = "import sys; import checkpoints.writing, common.manifest; print('blake3' in sys.modules)"
    done = run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"
