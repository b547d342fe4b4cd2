"""Model folders that lie, lack something, or are no models: one line each, and no crash."""

import json
import pickle
import shutil
import struct

import pytest
import torch
from blake3 import blake3
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from checkpoints.headers import read_header
from checkpoints.layout import INDEX, PICKLE_INDEX, PICKLE_SINGLE, SINGLE
from checkpoints.reading import Checkpoint
from common.errors import UserError


def container(folder, header, values=b"", length=None):
    """Write a model folder whose safetensors header is `header`, an object or ready bytes."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text("{}")
    size = struct.pack("<Q", len(text) if length is None else length)
    (folder / SINGLE).write_bytes(size + text + values)
    return folder


def tensor(begin, end, shape, dtype="F32"):
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


def refused(folder, match, **options):
    with pytest.raises(UserError, match=match) as caught:
        Checkpoint(folder, **options)
    assert "\n" not in str(caught.value)
    assert str(folder) in str(caught.value)


LIES = {
    "overlap": ({"a": tensor(0, 8, [2]), "b": tensor(4, 12, [2])}, 12, "b overlaps another"),
    "same place": ({"a": tensor(0, 8, [2]), "b": tensor(0, 8, [2])}, 8, "overlaps another"),
    "gap": ({"a": tensor(0, 8, [2]), "b": tensor(12, 16, [1])}, 16, "b leaves a gap"),
    "no beginning": ({"a": tensor(4, 8, [1])}, 8, "a leaves a gap"),
    "beyond the file": ({"a": tensor(0, 8, [2])}, 4, "truncated"),
    "far beyond": ({"a": tensor(0, 1 << 62, [1 << 60])}, 4, "truncated"),
    "rest": ({"a": tensor(0, 8, [2])}, 11, "3 bytes belong to no tensor"),
    "negative": ({"a": tensor(-8, 0, [2])}, 8, "impossible offsets"),
    "backwards": ({"a": tensor(8, 0, [2])}, 8, "gives it -8 bytes"),
    "three offsets": ({"a": tensor(0, 8, [2]) | {"data_offsets": [0, 8, 8]}}, 8, "offsets"),
    "fraction": ({"a": tensor(0, 8.0, [2])}, 8, "impossible offsets"),
    "truth as number": ({"a": tensor(False, 8, [2])}, 8, "impossible offsets"),
    "size": ({"a": tensor(0, 8, [3])}, 8, "gives it 8 bytes, its shape and type make 12"),
    "type's size": ({"a": tensor(0, 8, [2], "F16")}, 8, "make 4"),
    "negative shape": ({"a": tensor(0, 8, [-2, -1])}, 8, "impossible shape"),
    "shape no list": ({"a": tensor(0, 8, 2)}, 8, "impossible shape"),
    "unknown type": ({"a": tensor(0, 8, [8], "F8_E4M3")}, 8, "type 'F8_E4M3'.* not known"),
    "type no text": ({"a": tensor(0, 8, [2], ["F32"])}, 8, "not known"),
    "no description": ({"a": 5}, 8, "not described"),
    "lacks a field": ({"a": {"dtype": "F32", "shape": [2]}}, 8, "impossible offsets"),
    "name with a line": ({"a\nb": tensor(0, 8, [2])}, 8, "no name of a tensor"),
    "no name": ({"": tensor(0, 8, [2])}, 8, "no name of a tensor"),
    "a list": ([1, 2], 0, "not a safetensors file"),
    "no tensor": ({"__metadata__": {"format": "pt"}}, 0, "hold no tensor"),
    "no JSON": (b"{'a'}", 0, "not a safetensors file"),
    "no text": (b"\xff\xfe\xfd", 0, "not a safetensors file"),
    "nested": (b"[" * 100_000, 0, "not a safetensors file"),
    "digits": (b'{"a":' + b"9" * 5000 + b"}", 0, "not a safetensors file"),
    "repeated": (
        b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},'
        b'"a":{"dtype":"F32","shape":[1],"data_offsets":[4,8]}}',
        8,
        "not a safetensors file",
    ),
}


@pytest.mark.parametrize("lie", LIES)
def test_a_lying_header_is_refused(tmp_path, lie):
    header, size, match = LIES[lie]
    refused(container(tmp_path / "m", header, bytes(size)), match)


@pytest.mark.parametrize("length", [100_000_001, (1 << 64) - 1])
def test_a_huge_header_is_refused_before_it_is_read(tmp_path, length):
    refused(container(tmp_path / "m", b"{}", length=length), f"header of {length} bytes")


@pytest.mark.parametrize(
    ("content", "match"),
    [(b"", "an empty file"), (b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull")],
)
def test_a_file_of_no_weights_is_refused(tmp_path, content, match):
    folder = container(tmp_path / "m", {})
    (folder / SINGLE).write_bytes(content)
    refused(folder, match)


def test_tensors_without_values_are_not_taken_for_overlaps(tmp_path):
    tensors = {"a": torch.ones(2), "empty": torch.zeros(0, 3), "scalar": torch.tensor(4.0)}
    container(tmp_path / "m", {})
    save_file(tensors, tmp_path / "m" / SINGLE)
    checkpoint = Checkpoint(tmp_path / "m")
    assert {name: checkpoint.load(name).tolist() for name in tensors} == {
        "a": [1.0, 1.0],
        "empty": [],
        "scalar": 4.0,
    }
    assert checkpoint.shape("empty") == (0, 3)


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_a_damaged_header_is_read_as_it_was_or_refused(tmp_path_factory, data):
    """The safetensors library itself is the judge of what is still a file."""
    from safetensors import SafetensorError

    folder = tmp_path_factory.mktemp("damage")
    tensors = {"a": torch.arange(6.0).reshape(2, 3), "b": torch.ones(4, dtype=torch.bfloat16)}
    save_file(tensors, folder / SINGLE)
    content = bytearray((folder / SINGLE).read_bytes())
    header = 8 + struct.unpack("<Q", content[:8])[0]
    for _ in range(data.draw(st.integers(1, 3))):
        content[data.draw(st.integers(0, header - 1))] = data.draw(st.integers(0, 255))
    (folder / SINGLE).write_bytes(content)
    try:
        found = read_header(folder / SINGLE)
    except UserError as error:
        assert "\n" not in str(error)
        return
    try:
        theirs = load_file(folder / SINGLE)
    except SafetensorError as error:
        pytest.fail(f"accepted what safetensors refuses: {error}")
    assert {name: item.shape for name, item in found.items()} == {
        name: tuple(value.shape) for name, value in theirs.items()
    }


@pytest.fixture
def sharded(tmp_path):
    """A folder of two shards: x and y in a, z in b."""
    folder = tmp_path / "sharded"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    save_file({"x": torch.ones(2), "y": torch.ones(3)}, folder / "a.safetensors")
    save_file({"z": torch.zeros(2)}, folder / "b.safetensors")
    return folder


def index(folder, **weight_map):
    (folder / INDEX).write_text(json.dumps({"weight_map": weight_map}))
    return folder


RIGHT = {"x": "a.safetensors", "y": "a.safetensors", "z": "b.safetensors"}


def test_one_tensor_in_two_shards_is_refused(sharded):
    assert Checkpoint(index(sharded, **RIGHT)).names() == ["x", "y", "z"]
    save_file({"z": torch.zeros(2), "x": torch.zeros(2)}, sharded / "b.safetensors")
    refused(sharded, r"b\.safetensors: tensor x is in this shard and in a\.safetensors")


def test_a_tensor_that_the_index_forgets_is_refused(sharded):
    refused(index(sharded, x="a.safetensors", z="b.safetensors"), "tensor y is not in the index")


def test_a_tensor_or_shard_that_only_the_index_has_is_refused(sharded):
    refused(index(sharded, **RIGHT, w="b.safetensors"), "tensor w is missing from the shard")
    refused(index(sharded, **RIGHT, w="c.safetensors"), r"c\.safetensors: this shard is missing")


@pytest.mark.parametrize(
    "name",
    [
        *("../a.safetensors", "/etc/passwd", "sub/a.safetensors", "..", ".", "", "a\nb", "a\0b"),
        *("a" * 300, 5, None, ["a"], {"a": 1}),
    ],
)
def test_a_hostile_shard_name_is_refused(sharded, tmp_path, name):
    shutil.copy(sharded / "a.safetensors", tmp_path)  # what ../a.safetensors would find
    refused(index(sharded, **(RIGHT | {"z": name})), "no file next to the index")


def test_a_hostile_tensor_name_in_the_index_is_refused(sharded):
    refused(index(sharded, **RIGHT, **{"a\x1b[2J": "b.safetensors"}), "no name of a tensor")


@pytest.mark.parametrize(
    ("content", "match"),
    [
        ("", "not valid JSON"),
        ("{", "not valid JSON"),
        ("[1]", "no JSON object"),
        ("[" * 100_000, "nested too deeply"),
        ('{"a": ' + "9" * 5000 + "}", "not valid JSON"),
        ("\udcff", "not valid JSON"),
    ],
)
@pytest.mark.parametrize("file", [INDEX, "config.json"])
def test_malformed_json_is_refused(sharded, file, content, match):
    index(sharded, **RIGHT)
    (sharded / file).write_bytes(content.encode("utf-8", "surrogateescape"))
    refused(sharded, match)


@pytest.mark.parametrize("value", [{}, {"weight_map": []}, {"weight_map": {}}])
def test_an_index_without_a_map_is_refused(sharded, value):
    (sharded / INDEX).write_text(json.dumps(value))
    refused(sharded, "no weight_map")


def test_two_models_in_one_folder_are_refused(sharded):
    index(sharded, **RIGHT)
    shutil.copy(sharded / "a.safetensors", sharded / SINGLE)
    refused(sharded, "remove the one that is stale")


def test_a_path_that_is_no_model_is_refused(tmp_path):
    refused(tmp_path / "none", "no such folder")
    (tmp_path / "file").write_text("x")
    refused(tmp_path / "file", "a file; name the folder")
    (tmp_path / "adapter_config.json").write_text("{}")
    refused(tmp_path, "an adapter; it can only be an expert")


def test_what_lies_outside_a_parameter_cannot_be_read(sharded):
    checkpoint = Checkpoint(index(sharded, **RIGHT))
    assert checkpoint.read("y", 1, 3).tolist() == [1.0, 1.0]
    for start, stop in [(-1, 2), (0, 4), (3, 2)]:
        with pytest.raises(ValueError, match="of tensor y, which has 3"):
            checkpoint.read("y", start, stop)


@pytest.fixture
def pickled(tmp_path):
    """A folder with pytorch_model.bin in bfloat16 and float32."""
    folder = tmp_path / "pickled"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    torch.manual_seed(0)
    tensors = {
        "x": torch.randn(4, 3, dtype=torch.bfloat16),
        "turned": torch.randn(5, 2).T,
        "step": torch.tensor(3),
    }
    torch.save(tensors, folder / PICKLE_SINGLE)
    return folder, tensors


def test_a_pickle_is_refused_unless_asked_for(pickled):
    folder, tensors = pickled
    refused(folder, "a pickle, which can run code")
    checkpoint = Checkpoint(folder, allow_pickle=True)
    assert checkpoint.names() == sorted(tensors)
    assert {name: checkpoint.dtype(name) for name in tensors} == {
        "x": "BF16",
        "turned": "F32",
        "step": "I64",
    }
    for name, expected in tensors.items():
        assert torch.equal(checkpoint.load(name), expected)
        assert checkpoint.shape(name) == tuple(expected.shape)
    assert torch.equal(checkpoint.read("turned", 3, 8), tensors["turned"].reshape(-1)[3:8])
    checkpoint.ahead("x")
    checkpoint.read("x").zero_()  # what was read is a copy
    assert torch.equal(checkpoint.load("x"), tensors["x"])
    assert checkpoint.shards == [folder / PICKLE_SINGLE]
    # A pickle is hashed as weights are, whatever its name.
    digest = blake3((folder / PICKLE_SINGLE).read_bytes()).hexdigest()
    line = f"{PICKLE_SINGLE} blake3:{digest}\n"
    assert checkpoint.fingerprint == f"blake3:{blake3(line.encode()).hexdigest()}"


def test_safetensors_are_preferred_to_a_pickle(pickled):
    folder, _ = pickled
    save_file({"y": torch.ones(1)}, folder / SINGLE)
    assert Checkpoint(folder, allow_pickle=True).names() == ["y"]


def test_pickled_shards_are_checked_against_their_index(pickled):
    folder, tensors = pickled
    torch.save({"x": tensors["x"]}, folder / "a.bin")
    torch.save({"turned": tensors["turned"]}, folder / "b.bin")
    (folder / PICKLE_SINGLE).unlink()
    weight_map = {"x": "a.bin", "turned": "b.bin"}
    (folder / PICKLE_INDEX).write_text(json.dumps({"weight_map": weight_map}))
    assert Checkpoint(folder, allow_pickle=True).names() == ["turned", "x"]
    torch.save(tensors, folder / "b.bin")
    refused(folder, "is in this shard and in a.bin|not in the index", allow_pickle=True)
    weight_map["turned"] = "../b.bin"
    (folder / PICKLE_INDEX).write_text(json.dumps({"weight_map": weight_map}))
    refused(folder, "no file next to the index", allow_pickle=True)


class Bomb:
    """Leaves a file behind when it is unpickled."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return open, (self.path, "w")


@pytest.mark.parametrize("protocol", ["torch", "plain"])
def test_a_pickle_that_runs_code_is_refused_and_runs_nothing(pickled, tmp_path, protocol):
    folder, _ = pickled
    if protocol == "torch":
        torch.save({"x": torch.ones(1), "bomb": Bomb(tmp_path / "trace")}, folder / PICKLE_SINGLE)
    else:
        (folder / PICKLE_SINGLE).write_bytes(pickle.dumps({"x": Bomb(tmp_path / "trace")}))
    refused(folder, "cannot be read as weights alone", allow_pickle=True)
    assert not (tmp_path / "trace").exists()


@pytest.mark.parametrize(
    ("held", "match"),
    [
        ([torch.ones(1)], "no tensors by name"),
        ({}, "no tensors by name"),
        ({"state_dict": {"x": torch.ones(1)}}, "state_dict is no ordinary tensor"),
        ({"x": torch.ones(2, 2).to_sparse()}, "no ordinary tensor"),
        ({"x": torch.ones(2, dtype=torch.complex64)}, "type torch.complex64"),
        ({3: torch.ones(1)}, "no name of a tensor"),
    ],
)
def test_a_pickle_of_something_else_is_refused(pickled, held, match):
    folder, _ = pickled
    torch.save(held, folder / PICKLE_SINGLE)
    refused(folder, match, allow_pickle=True)


@pytest.mark.parametrize("keep", [0, 10, -100])
def test_a_truncated_pickle_is_refused(pickled, keep):
    folder, _ = pickled
    content = (folder / PICKLE_SINGLE).read_bytes()
    (folder / PICKLE_SINGLE).write_bytes(content[:keep])
    refused(folder, "cannot be read as weights alone", allow_pickle=True)
