"""Densities and the like that each expert has of its own: what each would keep alone, added up."""

from __future__ import annotations

import pytest
import torch

from common.errors import UserError
from merges.engine.run import merge_tensors

NAME = "model.layers.0.mlp.up_proj.weight"
SETTINGS = {
    "breadcrumbs": [{"density": 0.5, "gamma": 0.2}, {"density": 0.25, "gamma": 0.0}],
    "dare_linear": [{"density": 0.3}, {"density": 1.0}],
    "della_linear": [{"density": 0.5, "epsilon": 0.3}, {"density": 0.8, "epsilon": 0.1}],
}
VARIANTS = [
    ("breadcrumbs", {"rescale": "none"}),
    ("breadcrumbs", {"rescale": "l1"}),
    ("breadcrumbs", {"scope": "row"}),
    ("dare_linear", {"rescale": "l1"}),
    ("dare_linear", {"rescale": "none"}),
    ("della_linear", {"rescale": "probability"}),
    ("della_linear", {"rescale": "l1"}),
    ("della_linear", {"rescale": "none"}),
]


def _models() -> tuple[dict, dict]:
    generator = torch.Generator().manual_seed(2)
    base, *experts = (torch.randn(40, 50, generator=generator).double() for _ in range(3))
    return {NAME: base}, {"x": {NAME: experts[0]}, "y": {NAME: experts[1]}}


@pytest.mark.parametrize("by_name", [True, False])
@pytest.mark.parametrize(("method", "variant"), VARIANTS)
def test_each_expert_is_thinned_out_as_alone(method: str, variant: dict, by_name: bool) -> None:
    base, experts = _models()
    own = dict(zip(experts, SETTINGS[method], strict=True))
    alone = sum(
        merge_tensors(method, base, {name: experts[name]}, {**own[name], **variant, "scale": 0.7})[
            NAME
        ]
        - base[NAME]
        for name in experts
    )
    together = {
        word: {name: own[name][word] for name in own}
        if by_name
        else [own[name][word] for name in own]
        for word in own["x"]
    }
    merged = merge_tensors(method, base, experts, {**together, **variant, "scale": 0.7})[NAME]
    torch.testing.assert_close(merged - base[NAME], alone)


@pytest.mark.parametrize(
    ("election", "own"),
    [("breadcrumbs_ties", "breadcrumbs"), ("dare_ties", "dare_linear"), ("della", "della_linear")],
)
def test_elections_are_of_the_same_values(election: str, own: str) -> None:
    """With the second expert's weight 0 the first alone is left, thinned out by its own share."""
    base, experts = _models()
    first, second = SETTINGS[own]
    both = {word: [first[word], second[word]] for word in first} | {"weights": [1.0, 0.0]}
    found = merge_tensors(election, base, experts, {**both, "merge": "sum"})[NAME]
    alone = merge_tensors(own, base, {"x": experts["x"]}, {**first, "scale": 1.0})[NAME]
    torch.testing.assert_close(found, alone)


def test_every_experts_probabilities_are_checked() -> None:
    base, experts = _models()
    with pytest.raises(UserError, match=r"0.9 ± 0.2 must be in \(0, 1\]"):
        merge_tensors("della", base, experts, {"density": [0.5, 0.9], "epsilon": 0.2})


def test_dare_without_rescale_leaves_kept_values_as_they_are() -> None:
    base, experts = _models()
    expert = {"x": experts["x"]}
    for method in ("dare_linear", "dare_ties"):
        found = merge_tensors(method, base, expert, {"density": 0.3, "rescale": "none"})[NAME]
        kept = (found - experts["x"][NAME]).abs() < 1e-12
        assert 0.25 < kept.double().mean() < 0.35
        assert torch.equal(found[~kept], base[NAME][~kept])
