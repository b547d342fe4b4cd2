"""Inner products over pieces, and the arc between two vectors, against exact arithmetic."""

from __future__ import annotations

from fractions import Fraction

import mpmath
import numpy as np
import pytest
import torch

from common.errors import UserError
from merges.arithmetic.gram import arc, gram, row_grams
from merges.engine.pieces import Part, Pieces
from merges.engine.requests import TensorContext


def pieces(base: torch.Tensor | None, experts: list[torch.Tensor], unit: str = "values") -> Pieces:
    def reader(tensor: torch.Tensor):
        return lambda start, stop: tensor.flatten()[start:stop]

    names = tuple(f"e{n}" for n in range(len(experts)))
    context = TensorContext("w", names, 0, tuple(experts[0].shape))
    part = Part(context, None if base is None else reader(base), [reader(x) for x in experts])
    return Pieces([part], unit)


@pytest.mark.parametrize("unit", ["values", "rows"])
@pytest.mark.parametrize("shape", [(7,), (300, 401), (3, 200, 150)])
@pytest.mark.parametrize("origin", ["zero", "base"])
def test_gram_is_exact_to_float64(unit: str, shape: tuple[int, ...], origin: str) -> None:
    rng = np.random.default_rng(0)
    base, *experts = (torch.tensor(rng.normal(size=shape), dtype=torch.float32) for _ in range(4))
    found = gram(pieces(base, experts, unit), origin)
    start = base.numpy() if origin == "base" else np.float32(0)
    # Task vectors are rounded to float32; squares are exact in float64, and longer still the sum.
    vectors = [(x.numpy() - start).astype(np.longdouble).ravel() for x in experts]
    expected = [[(a * b).sum() for b in vectors] for a in vectors]
    scale = np.sqrt(np.outer(np.diag(expected), np.diag(expected))).astype(float)
    assert (np.abs(found - expected) <= 1e-13 * scale).all()


def test_gram_of_nearly_equal_tensors_against_fractions() -> None:
    rng = np.random.default_rng(1)
    first = torch.tensor(rng.normal(size=500), dtype=torch.float32)
    second = first * (1 + 2.0**-20 * torch.tensor(rng.normal(size=500), dtype=torch.float32))
    found = gram(pieces(None, [first, second]))
    for i, a in enumerate((first, second)):
        for j, b in enumerate((first, second)):
            exact = sum(
                Fraction(x) * Fraction(y) for x, y in zip(a.tolist(), b.tolist(), strict=True)
            )
            assert abs(found[i, j] / float(exact) - 1) < 1e-14


def test_gram_needs_the_base_that_it_is_asked_for() -> None:
    with pytest.raises(UserError, match="origin=base"):
        gram(pieces(None, [torch.ones(3)]), "base")


def test_inner_products_of_rows() -> None:
    rng = np.random.default_rng(2)
    matrices = [rng.normal(size=(6, 9)).astype(np.float32) for _ in range(3)]
    found = row_grams([torch.tensor(m) for m in matrices]).numpy()
    stacked = np.stack(matrices, axis=1).astype(np.float64)
    np.testing.assert_allclose(found, stacked @ stacked.transpose(0, 2, 1), rtol=1e-13, atol=1e-14)


@pytest.mark.parametrize("t", [0.0, 0.25, 0.5, 0.9, 1.0, 1.5])
def test_arc_at_every_angle(t: float) -> None:
    gaps = [2.0**-52, 2.0**-50, 1e-12, 1e-6, 0.01, 0.5]
    cosines = [1 - gap for gap in gaps] + [0.0, -0.5, -0.99]
    near, far = arc(torch.tensor(cosines, dtype=torch.float64), t)
    with mpmath.workdps(60):
        for cosine, one, two in zip(cosines, near.tolist(), far.tolist(), strict=True):
            angle = mpmath.acos(mpmath.mpf(cosine))
            for found, share in ((one, 1 - mpmath.mpf(t)), (two, mpmath.mpf(t))):
                expected = mpmath.sin(share * angle) / mpmath.sin(angle)
                assert abs(found - expected) < 1e-13


@pytest.mark.parametrize("cosine", [1.0, -1.0, -1 + 1e-12])
def test_arc_without_a_plane_is_the_line(cosine: float) -> None:
    near, far = arc(torch.tensor(cosine, dtype=torch.float64), 0.25)
    assert (float(near), float(far)) == (0.75, 0.25)
