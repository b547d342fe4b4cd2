"""Measures of likeness against formulas on complete vectors, and the command that prints them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from checkpoints import comparing
from checkpoints.likeness import MEASURES, Likeness, effective_rank, linear_cka, over_pairs
from common.calling import call

FILE = "model.safetensors"


def test_measures_of_weights_are_those_of_complete_vectors():
    draw = np.random.default_rng(0)
    base, deltas = draw.normal(size=900), draw.normal(0.1, 1.0, size=(3, 900))
    deltas[1] = 0.5 * deltas[0] + deltas[1]
    deltas[:, :300] = 0  # not changed by any
    deltas[2, 300:400] = 0
    found = Likeness(3)
    for start in range(0, 900, 250):
        found.add(base[start : start + 250], deltas[:, start : start + 250])
    for part in (deltas[:, 300:600], deltas[:, 600:]):
        found.add_layer(part.reshape(3, 15, 20))
    pairs = found.pairs()
    one, two = deltas[0], deltas[2]
    lengths = np.linalg.norm(deltas, axis=1)
    assert pairs["cosine"][0, 2] == pytest.approx(one @ two / (lengths[0] * lengths[2]))
    assert pairs["kinship"][0, 1] == pytest.approx(np.corrcoef(deltas[0], deltas[1])[0, 1])
    both = (one != 0) & (two != 0)
    assert pairs["conflict"][0, 2] == pytest.approx((one * two < 0).sum() / both.sum())
    drifts = lengths / np.linalg.norm(base)
    assert pairs["drift"][1, 2] == pytest.approx((drifts[1] + drifts[2]) / 2)
    assert pairs["unevenness"][2, 1] == pytest.approx(max(lengths[1:]) / min(lengths[1:]))
    ranks = [
        np.mean(
            [effective_rank(d[300:600].reshape(15, 20)), effective_rank(d[600:].reshape(15, 20))]
        )
        for d in deltas
    ]
    assert pairs["rank"][0, 2] == pytest.approx((ranks[0] + ranks[2]) / 2)
    assert over_pairs(pairs["cosine"], [0, 1, 2]) == pytest.approx(
        (pairs["cosine"][0, 1] + pairs["cosine"][0, 2] + pairs["cosine"][1, 2]) / 3
    )


def test_a_model_that_did_not_move_has_no_likeness():
    found = Likeness(2)
    found.add(np.ones(4), np.array([[0.0] * 4, [1.0, 2.0, 3.0, 5.0]]))
    pairs = found.pairs()
    assert all(np.isnan(pairs[name][0, 1]) for name in ("cosine", "kinship", "conflict", "drift"))


def test_effective_rank_is_the_entropy_s():
    draw = np.random.default_rng(1)
    matrix = draw.normal(size=(12, 7))
    shares = np.linalg.svd(matrix, compute_uv=False)
    shares /= shares.sum()
    expected = np.exp(-(shares * np.log(shares)).sum()) / 7
    assert effective_rank(matrix) == effective_rank(matrix.T) == pytest.approx(expected)
    assert effective_rank(np.eye(5)) == pytest.approx(1.0)
    assert effective_rank(np.outer(draw.normal(size=9), draw.normal(size=6))) == pytest.approx(
        1 / 6
    )
    assert effective_rank(np.zeros((3, 4))) == 0.0


def test_cka_is_that_of_centred_kernels_and_knows_rotations():
    draw = np.random.default_rng(2)
    one, two = draw.normal(1.0, 1.0, (40, 6)), draw.normal(size=(40, 9))
    centre = np.eye(40) - 1 / 40
    first, second = centre @ one @ one.T @ centre, centre @ two @ two.T @ centre
    expected = (first * second).sum() / np.sqrt((first**2).sum() * (second**2).sum())
    assert linear_cka(one, two) == pytest.approx(expected)
    turn, _ = np.linalg.qr(draw.normal(size=(6, 6)))
    assert linear_cka(one, 3 * one @ turn + 5) == pytest.approx(1.0)
    assert np.isnan(linear_cka(np.ones((4, 2)), one[:4]))


@pytest.fixture(scope="module")
def top(make_model: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base and two models that changed in the same direction, plus noise."""
    folder = tmp_path_factory.mktemp("alike")
    make_model(folder / "base")
    base, generator = load_file(folder / "base" / FILE), torch.Generator().manual_seed(1)
    shared = {n: torch.randn(t.shape, generator=generator) for n, t in base.items()}
    for name in ("one", "two"):
        shutil.copytree(folder / "base", folder / name)
        tensors = {
            n: t + 0.02 * (shared[n] + torch.randn(t.shape, generator=generator))
            for n, t in base.items()
        }
        save_file(tensors, folder / name / FILE, {"format": "pt"})
    return folder


def given(top: Path, *more: str) -> list[str]:
    return ["compare", str(top / "one"), str(top / "two"), "--base", str(top / "base"), *more]


def test_the_command_prints_all_measures_while_none_is_known_to_be_worth_anything(
    top, tmp_path, capsys, monkeypatch
):
    monkeypatch.setattr(comparing, "WORTH", tmp_path / "none.json")
    rows = tmp_path / "rows.jsonl"
    words = ["w5 w6 w7", "w9 w4", "w3 w8 w6"]
    rows.write_text("\n".join(json.dumps({"prompt": w, "answer": " w5 w7"}) for w in words))
    assert call("checkpoints.cli", given(top, "--rows", str(rows))) == 0
    printed = capsys.readouterr().out
    values = {line.split()[0]: float(line.split()[1]) for line in printed.splitlines()[1:-1]}
    assert set(values) == set(MEASURES) and "not known until the study of scale" in printed
    deltas = [
        torch.cat([(t - base[n]).double().flatten() for n, t in load_file(top / m / FILE).items()])
        for base in [load_file(top / "base" / FILE)]
        for m in ("one", "two")
    ]
    cosine = torch.nn.functional.cosine_similarity(*deltas, dim=0)
    assert values["cosine"] == pytest.approx(float(cosine), abs=1e-4)
    assert 0 < values["cka"] <= 1


def test_the_command_prints_what_earned_its_place(top, tmp_path, capsys, monkeypatch):
    equal = {"rho": 0.61, "low": 0.42, "high": 0.8}
    known = {"rho": 0.3, "low": 0.2, "high": 0.4, "equal": equal, "worlds": 24, "higher": False}
    worth = {
        "cosine": known | {"earned": True},
        "drift": known | {"earned": True, "equal": None, "higher": True},
        "conflict": known | {"earned": False},
        "experts": known | {"earned": True},
    }
    path = tmp_path / "worth.json"
    path.write_text(json.dumps(worth))
    monkeypatch.setattr(comparing, "WORTH", path)
    assert call("checkpoints.cli", given(top)) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[1:-1]] == ["cosine", "drift"]
    assert "   lower   +0.61 [+0.42, +0.80]" in lines[1] and "24 worlds" in lines[-1]
    assert "   higher  +0.30 [+0.20, +0.40]" in lines[2]


def test_bad_rows_and_another_model_are_refused(top, tmp_path, capsys, make_model):
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"prompt": "w5", "answer": ""}\n')
    assert call("checkpoints.cli", given(top, "--rows", str(rows))) == 2
    assert "line 1: the row has no answer to predict" in capsys.readouterr().err
    rows.write_text('{"prompt": "w5"}\n')
    assert call("checkpoints.cli", given(top, "--rows", str(rows))) == 2
    assert 'line 1: no "prompt" and "answer"' in capsys.readouterr().err
    other = make_model(tmp_path / "other", hidden_size=64)
    command = ["compare", str(top / "one"), str(other), "--base", str(top / "base")]
    assert call("checkpoints.cli", command) == 2
    assert capsys.readouterr().err.startswith("error: ")
