"""Merges on arrays: compiled kernels against torch, numpy in float64, and the merge in memory."""

from __future__ import annotations

import os
import subprocess
import sys
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch

from checkpoints.reading import Checkpoint
from common.errors import UserError
from merges.engine import pieces, registry
from merges.engine import run as engine
from merges.engine.config import MergeConfig
from merges.engine.streaming import Collected, Merge
from merges.methods.ties import merge_agreeing

ROOT = Path(__file__).resolve().parents[2]
NAMES = ("ja", "math", "sql")
ON_ARRAYS = [name for name, info in registry.describe().items() if info.arrays]


@pytest.fixture(scope="session", autouse=True)
def libraries():
    """Import numba only when the tests run: collecting them stays quick."""
    global kernels
    from merges.arithmetic import kernels


def same_bits(array: np.ndarray, tensor: torch.Tensor) -> bool:
    return array.tobytes() == tensor.contiguous().view(torch.uint8).numpy().tobytes()


def every_pattern() -> np.ndarray:
    return np.arange(1 << 16, dtype=np.uint16)


def test_widening_bfloat16_is_exact_for_every_pattern() -> None:
    values = np.empty(1 << 16, dtype=np.float32)
    assert not kernels.widen(every_pattern(), values)  # infinities and NaN are among them
    expected = torch.from_numpy(every_pattern().view(np.int16)).view(torch.bfloat16).float()
    np.testing.assert_array_equal(values, expected.numpy())


@pytest.mark.parametrize("bad", [np.inf, -np.inf, np.nan])
@pytest.mark.parametrize("dtype", [np.float32, np.float16, np.uint16])
def test_what_is_not_finite_is_seen(dtype: type, bad: float) -> None:
    sound = np.array([3.0e38 if dtype != np.float16 else 6.0e4] * 3, dtype=np.float32)
    for place, value in ((None, True), (1, False)):
        values = sound.copy()
        if place is not None:
            values[place] = bad
        stored = values.view(np.uint16)[1::2].copy() if dtype == np.uint16 else values.astype(dtype)
        assert kernels.widen(stored, np.empty(3, dtype=np.float32)) is value


@pytest.mark.parametrize("count", [0, 1, 31, 32, 33, 1000])
def test_inner_products_are_exact_but_for_their_sums(count: int) -> None:
    rng = np.random.default_rng(count)
    vectors = [rng.normal(scale=10.0**n, size=count).astype(np.float32) for n in (-20, 0, 15)]
    found = kernels.gram(vectors)
    assert found.shape == (3, 3) and found.dtype == np.float64
    for i, a in enumerate(vectors):
        for j, b in enumerate(vectors):
            terms = [Fraction(float(x)) * Fraction(float(y)) for x, y in zip(a, b, strict=True)]
            error = abs(Fraction(float(found[i, j])) - sum(terms, Fraction(0)))
            # A value passes through at most a place's sum, the sum of the places and the rest's.
            roundings = count // 32 + 64
            assert error <= sum(map(abs, terms)) * roundings / 2**53


@pytest.mark.parametrize("dtype", ["BF16", "F16", "F32"])
def test_narrowing_rounds_as_torch_does(dtype: str) -> None:
    kind = {"BF16": torch.bfloat16, "F16": torch.float16, "F32": torch.float32}[dtype]
    limit = torch.finfo(kind).max
    # All magnitudes and mantissas, halves between neighbours and subnormal numbers among them.
    bits = np.random.default_rng(0).integers(0, 1 << 32, size=1 << 20, dtype=np.uint32)
    bits[::3] &= np.uint32(0xFFFF8000)
    values = bits.view(np.float32)
    with np.errstate(invalid="ignore"):
        values = np.append(values[np.abs(values) <= limit], np.float32([limit, -limit, 0.0, -0.0]))
    assert same_bits(kernels.narrow(values, dtype), torch.from_numpy(values).to(kind))
    with np.errstate(over="ignore"):
        above = np.nextafter(np.float32(limit), np.float32(np.inf))
    for bad in (above, -above, np.inf, np.nan):
        assert kernels.narrow(np.append(values, np.float32(bad)), dtype) is None


@pytest.mark.parametrize("count", [1, 7, 1003])
def test_a_product_is_added_with_one_rounding(count: int) -> None:
    rng = np.random.default_rng(count)
    vectors = rng.normal(size=(2, count)).astype(np.float32)
    vectors[0] = -vectors[1] * np.float32(0.3)  # nearly cancels: only the one rounding is left
    found = kernels.combine(list(vectors.copy()), [1.0, 0.3])
    # In float64 a product of float32 numbers is exact, and this sum, because it cancels, too.
    exact = vectors[0].astype(float) + vectors[1].astype(float) * float(np.float32(0.3))
    np.testing.assert_array_equal(found, exact.astype(np.float32))


@pytest.mark.parametrize("merge", ["mean", "sum"])
@pytest.mark.parametrize("weights", [None, [0.5, 0.3, 0.0]])
def test_election_is_torchs_bit_by_bit(merge: str, weights: list[float] | None) -> None:
    rng = np.random.default_rng(1)
    vectors = rng.normal(size=(3, 4099)).astype(np.float32) * (rng.random((3, 4099)) < 0.5)
    vectors = vectors.astype(np.float32)
    vectors[:, :5] = [[1, 1, 0, -1e-38, 1e38], [-1, 0, 0, 0, 1e38], [0, -1, 0, 0, -1e38]]
    expected = merge_agreeing([torch.tensor(vector) for vector in vectors], weights, merge)
    assert same_bits(merge_agreeing(list(vectors), weights, merge), expected)


@pytest.mark.parametrize("split", [-3, 0, 2, 9])
def test_trimming_by_hand(split: int) -> None:
    values = np.float32([1, -2, 2, 3, -0.5])
    kept = [abs(v) > (0.75 if place < split else 2) for place, v in enumerate(values)]
    expected = np.where(kept, values, 0)
    np.testing.assert_array_equal(kernels.trim(values, 0.75, 2.0, split), expected)


@pytest.mark.parametrize("dtype", [None, "float16", "float32"])
@pytest.mark.parametrize("method", ON_ARRAYS)
def test_the_result_is_torchs_bit_by_bit(
    method: str, dtype: str | None, llama: Path, tmp_path: Path
) -> None:
    base = Checkpoint(llama / "base")
    experts = {
        name: Checkpoint(llama / name) for name in NAMES[: registry.info(method).experts or 3]
    }
    engine.merge_to_disk(
        tmp_path / "out", MergeConfig(method, base, experts, {}, seed=3, dtype=dtype)
    )
    arrays = Checkpoint(tmp_path / "out")
    merge = Merge(MergeConfig(method, base, experts, seed=3, dtype=dtype))
    sink = Collected(merge.specs)
    merge.run(sink, list(merge.specs))
    for name, tensor in sink.tensors.items():
        assert torch.equal(arrays.load(name), tensor), name


@pytest.mark.parametrize("method", ["linear", "ties", "dare_ties"])
def test_pieces_and_threads_change_no_bit_of_arrays(
    method: str, mistral: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = Checkpoint(mistral / "base")
    experts = {name: Checkpoint(mistral / name) for name in NAMES}
    engine.merge_to_disk(tmp_path / "one", MergeConfig(method, base, experts, {}, seed=3))
    monkeypatch.setattr(pieces, "CPU_SIZE", 53)
    engine.merge_to_disk(
        tmp_path / "two", MergeConfig(method, base, experts, {}, seed=3, threads=3)
    )
    one, two = (tmp_path / name / "model.safetensors" for name in ("one", "two"))
    assert one.read_bytes() == two.read_bytes()


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
def test_an_overflow_is_refused_without_a_warning(
    dtype: str, llama: Path, tmp_path: Path, recwarn: pytest.WarningsRecorder
) -> None:
    base, expert = Checkpoint(llama / "base"), Checkpoint(llama / "ja")
    with pytest.raises(UserError, match=f"overflows {dtype}"):
        engine.merge_to_disk(
            tmp_path / "out",
            MergeConfig(
                "linear",
                base,
                {"ja": expert},
                {"weights": [1e39], "normalize": False},
                dtype=dtype,
            ),
        )
    assert not (tmp_path / "out").exists()
    assert not [item for item in recwarn if item.category is RuntimeWarning]


def test_a_merge_on_arrays_imports_neither_torch_nor_numba(llama: Path, tmp_path: Path) -> None:
    from merges.arithmetic import patterns

    kernels.KERNELS.load()  # compiled and kept
    patterns.KERNELS.load()
    code = (
        "import sys\nfrom merges.cli import main\nfrom merges.engine import run\n"
        # All is loaded when the merge's price begins to count.
        "measure, loaded = run.measure, []\n"
        "def counting(path):\n"
        "    from merges.arithmetic import kernels, patterns\n"
        "    loaded.append(bool(kernels.KERNELS._loaded and patterns.KERNELS._loaded))\n"
        "    return measure(path)\n"
        "run.measure = counting\n"
        f"main(['--method', 'ties', '--base', {str(llama / 'base')!r}, '--experts', "
        f"{'ja=' + str(llama / 'ja')!r}, {'math=' + str(llama / 'math')!r}, "
        f"'--out', {str(tmp_path / 'out')!r}])\n"
        "print('torch' in sys.modules or 'numba' in sys.modules, *loaded)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split()[-2:] == ["False", "True"]


RANKED = {
    "equal": np.full(1000, 0.25),
    "two": np.repeat([0.25, np.nextafter(np.float32(0.25), np.float32(1))], 500),
    "few": np.arange(10_000) % 37 / 64,
    "near": 1 + np.arange(70_000) * 2.0**-23,
    "far": np.exp(np.random.default_rng(0).normal(size=10_000) * 20),
    "extreme": np.array([0.0, 1e-45, 3.4e38, np.inf, 1.0, 1.0]),
    "one": np.array([2.0]),
}


@pytest.mark.parametrize("kind", RANKED)
def test_a_rank_is_that_of_a_sorted_list(kind: str) -> None:
    values = RANKED[kind].astype(np.float32)
    values = np.random.default_rng(1).permutation(values)
    in_order = sorted(values.tolist(), reverse=True)
    for rank in {1, 2, len(values) // 3, len(values) // 2, len(values) - 1, len(values)}:
        if 1 <= rank <= len(values):
            assert kernels.ranked(values, rank) == in_order[rank - 1]
