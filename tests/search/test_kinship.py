"""Kinship against numpy on whole vectors in float64, and the choice against a case by hand."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from checkpoints.likeness import kinship
from checkpoints.reading import Checkpoint
from common.calling import call
from common.hashes import BLAKE3, SHA256
from search.kinship import inner_products, next_merges

FILE = "model.safetensors"
NAMES = ("a", "b", "c")


@pytest.fixture(scope="module")
def top(make_model: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base and three experts; b's change is half of c's plus noise, against a's sign."""
    folder = tmp_path_factory.mktemp("kin")
    make_model(folder / "base")
    base, generator = load_file(folder / "base" / FILE), torch.Generator().manual_seed(1)
    shared = {n: torch.randn(t.shape, generator=generator) + 0.5 for n, t in base.items()}
    for name, share in zip(NAMES, (-0.5, 0.5, 1.0), strict=True):
        shutil.copytree(folder / "base", folder / name)
        tensors = {
            n: t + 0.01 * (share * shared[n] + torch.randn(t.shape, generator=generator))
            for n, t in base.items()
        }
        save_file(tensors, folder / name / FILE, {"format": "pt"})
    return folder


def vectors(top: Path) -> np.ndarray:
    base = load_file(top / "base" / FILE)
    return np.stack(
        [
            np.concatenate([(own[n].double() - base[n].double()).flatten() for n in sorted(base)])
            for own in (load_file(top / name / FILE) for name in NAMES)
        ]
    )


def alike(top: Path, *given, **settings) -> np.ndarray:
    models = {name: Checkpoint(top / name) for name in NAMES}
    return kinship(*inner_products(Checkpoint(top / "base"), models), *given, **settings)


def test_it_is_the_cosine_and_pearsons_correlation_of_task_vectors(
    top: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("checkpoints.differences._PIECE", 100)  # pieces end inside of rows
    deltas = vectors(top)
    lengths = np.linalg.norm(deltas, axis=1)
    expected = deltas @ deltas.T / np.outer(lengths, lengths)
    np.testing.assert_allclose(alike(top), expected, rtol=0, atol=1e-12)
    np.testing.assert_allclose(alike(top, "pearson"), np.corrcoef(deltas), rtol=0, atol=1e-12)
    assert expected[0, 2] < -0.1
    np.testing.assert_allclose(alike(top, absolute=True), np.abs(expected), rtol=0, atol=1e-12)


def test_vectors_without_a_direction_have_no_kinship() -> None:
    deltas = np.array([[1.0, 2.0, 3.0, 0.0], [0.1, 0.1, 0.1, 0.1], [0.0, 0.0, 0.0, 0.0]])
    given = (deltas @ deltas.T, deltas.sum(axis=1), 4)
    assert np.isnan(np.diagonal(kinship(*given, "pearson"))).tolist() == [False, True, True]
    assert np.isnan(np.diagonal(kinship(*given))).tolist() == [False, False, True]


def test_the_best_are_paired_and_the_best_explores() -> None:
    likeness = np.array(
        [[1.0, 0.9, 0.2, 0.5], [0.9, 1.0, 0.1, 0.3], [0.2, 0.1, 1.0, 0.6], [0.5, 0.3, 0.6, 1.0]]
    )
    assert next_merges([3, 4, 1, 4], likeness, 3) == (
        *([1, 3, 0], [(1, 3), (1, 0), (3, 0), (1, 2)]),
    )
    assert next_merges([3, 4, 1, 2], likeness, 1) == ([1], [(1, 2)])
    assert next_merges([3, 1, 4, 2], likeness, 2) == ([2, 0], [(2, 0), (2, 1)])
    assert next_merges([3, 1, 4, 2], likeness, 4)[1].count((2, 1)) == 1


def scored(top: Path, folder: Path, **values: float | None) -> list[str]:
    """Write score files."""
    for name, value in values.items():
        tasks = {"s/one": {"value": value}, "s/two": {"value": 0.5}}
        kind = SHA256 if name == "a" else BLAKE3  # one was scored before weights had BLAKE3
        weights = Checkpoint(top / name).fingerprint_of(kind)
        (folder / f"{name}.json").write_text(json.dumps({"weights": weights, "tasks": tasks}))
    return [f"{name}={folder / name}.json" for name in values]


def command(top: Path, *names: str) -> list[str]:
    return [
        *("kinship", "--base", str(top / "base"), "--experts"),
        *(f"{name}={top / name}" for name in names),
    ]


def test_the_command_names_the_pairs(
    top: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    scores, out = scored(top, tmp_path, a=0.1, b=0.7, c=0.9), tmp_path / "kinship.json"
    given = [*command(top, *NAMES), "--scores", *scores, "--out", str(out)]
    assert call("search.cli", given) == 0
    shown, found = capsys.readouterr().out, json.loads(out.read_text())
    assert f"a b: {alike(top)[0, 1]:.4f}\n" in shown
    assert "best: c, b\nmerge next: c+b, c+a\n" in shown
    assert found["scores"] == pytest.approx({"a": 0.3, "b": 0.6, "c": 0.7})
    assert found["pairs"] == [["c", "b"], ["c", "a"]]
    assert list(found["kinship"]["b"].values()) == pytest.approx(alike(top)[1].tolist())


def test_bad_input_is_one_line(
    top: Path, tmp_path: Path, make_model: Callable[..., Path], capsys: pytest.CaptureFixture
) -> None:
    scores, three = scored(top, tmp_path, a=0.1, b=0.7, c=None), command(top, *NAMES)
    make_model(tmp_path / "wide", intermediate_size=80)
    capsys.readouterr()
    other = [scores[0], f"b={tmp_path}/a.json", scores[2]]
    for given, message in (
        (command(top, "a"), "--experts: give at least two"),
        ([*command(top, "a"), f"x={top / 'base'}"], "expert x: its task vector has no direction"),
        (
            [*command(top, "a"), f"x={tmp_path / 'wide'}"],
            "intermediate_size is 80, the base's is 64",
        ),
        ([*three, "--top", "2"], "--top needs --scores"),
        ([*three, "--scores", *scores[:2]], "--scores c: no score file"),
        ([*three, "--scores", *other], "scores of other weights than b's"),
        ([*three, "--scores", *scores], "a task has no value"),
        ([*three, "--scores", *scores, "--top", "4"], "--top 4: give a number from 1 to 3"),
    ):
        assert call("search.cli", [*given, "--out", str(tmp_path / "out.json")]) == 2
        error = capsys.readouterr().err
        assert message in error and error.count("\n") == 1, error
        assert not (tmp_path / "out.json").exists()
