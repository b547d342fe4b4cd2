"""Kernels are compiled once, kept whole or not at all, and refuse what they would misread."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from merges.arithmetic import compiling
from merges.arithmetic.compiling import Kernels, addresses, fused


def doubling() -> Kernels:
    kernels = Kernels()

    @kernels.kernel("int64", "float32*", "float32", "int64")
    def double(values, add, count):
        for j in range(count):
            values[j] = fused(values[j], np.float32(2), add)
        return count + 1

    kernels.double = double  # type: ignore[attr-defined]
    return kernels


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Keep compiled code in a folder of the test's."""
    monkeypatch.setattr(compiling, "_places", lambda key: [tmp_path / f"kernels-{key}.bin"])
    return tmp_path


def run(kernels: Kernels) -> list[float]:
    values = np.float32([1, 2, 3])
    assert kernels.double(values, 0.5, 2) == 3  # type: ignore[attr-defined]
    return values.tolist()


def test_a_second_process_loads_what_the_first_compiled(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run(doubling()) == [2.5, 4.5, 3.0]
    assert len(list(place.iterdir())) == 1
    monkeypatch.setattr(compiling, "_compile", lambda functions: pytest.fail("compiled again"))
    assert run(doubling()) == [2.5, 4.5, 3.0]


@pytest.mark.parametrize("damage", ["cut", "changed", "empty", "other"])
def test_a_damaged_file_is_made_again(place: Path, damage: str) -> None:
    run(doubling())
    (kept,) = place.iterdir()
    whole = kept.read_bytes()
    middle = len(whole) // 2
    damaged = {
        "cut": whole[:middle],
        "changed": whole[:middle] + bytes([whole[middle] ^ 1]) + whole[middle + 1 :],
        "empty": b"",
        "other": b"{}",
    }
    kept.write_bytes(damaged[damage])
    assert run(doubling()) == [2.5, 4.5, 3.0]
    assert compiling._kept(kept) is not None


def test_without_a_folder_for_compiled_code_it_is_compiled_each_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "file"
    file.write_text("")
    monkeypatch.setattr(compiling, "_places", lambda key: [file / "kernels.bin"])
    assert run(doubling()) == [2.5, 4.5, 3.0]


def test_another_processor_has_another_file(monkeypatch: pytest.MonkeyPatch) -> None:
    key = doubling()._key()
    monkeypatch.setenv("NUMBA_CPU_NAME", "haswell")
    assert doubling()._key() != key


MODULE = """
from merges.arithmetic.compiling import Kernels
KERNELS, ADDED = Kernels(), 1
@KERNELS.kernel("int64", "int64")
def more(count):
    return count + ADDED
"""


@pytest.mark.parametrize("edit", [("+ ADDED", "- ADDED"), ("(), 1", "(), 2"), ("int64", "float64")])
def test_whatever_changes_in_a_module_its_kernels_have_another_file(
    place: Path, edit: tuple[str, str]
) -> None:
    """A constant beside a kernel is compiled into it."""
    keys, results = [], []
    for text in (MODULE, MODULE.replace(*edit)):
        path = place / "module.py"
        path.write_text(text, encoding="utf-8")
        names: dict[str, Any] = {}
        exec(compile(text, path, "exec"), names)
        keys.append(names["KERNELS"]._key())
        results.append(names["more"](5))
    assert keys[0] != keys[1]
    assert results == [6, eval(MODULE.replace(*edit).rsplit("return")[1], names | {"count": 5})]


def test_arrays_that_a_kernel_would_misread_are_refused(place: Path) -> None:
    kernels = doubling()
    for wrong in (np.zeros(3), np.float32([[1, 2], [3, 4]])[:, 0]):
        with pytest.raises(ValueError, match="one after another"):
            kernels.double(wrong, 0.0, 2)  # type: ignore[attr-defined]
    with pytest.raises(ValueError, match="one after another"):
        addresses([np.zeros((2, 2), dtype=np.uint16)[:, 1]])
