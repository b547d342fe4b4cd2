"""Every term and its closed-form gradient against plain autograd in float64."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch.nn import functional as F

from common.errors import UserError
from merges.dam import head, layers, objective
from merges.dam.head import OutputHead, Segment, output_loss
from merges.dam.layers import MergedLinear
from merges.dam.objective import Objective

T = 2.0
EXACT = {"rtol": 1e-9, "atol": 1e-12}


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def plain_term(name, direction, logits, teacher):
    """The term's sum over tokens, by the textbook."""
    log_p, log_q = F.log_softmax(logits / T, -1), F.log_softmax(teacher / T, -1)
    if name == "mse":
        return ((logits - teacher) ** 2).mean(-1).sum()
    if name == "js":
        middle = ((log_p.exp() + log_q.exp()) / 2).log()
        both = (F.kl_div(middle, x.exp(), reduction="sum") for x in (log_p, log_q))
        return T * T * sum(both) / 2
    if name == "entropy":
        return -T * T * (log_p.exp() * log_p).sum()
    if direction == "teacher||merged":
        return T * T * F.kl_div(log_p, log_q.exp(), reduction="sum")
    return T * T * F.kl_div(log_q, log_p.exp(), reduction="sum")


@pytest.mark.parametrize(
    ("name", "direction"),
    [
        ("kl", "teacher||merged"),
        ("kl", "merged||teacher"),
        ("js", "teacher||merged"),
        ("mse", "teacher||merged"),
        ("entropy", "teacher||merged"),
    ],
)
def test_output_term_and_its_gradient(name, direction):
    logits, teacher = normal(7, 11).requires_grad_(), normal(7, 11, seed=1)
    expected = plain_term(name, direction, logits, teacher)
    expected.backward()
    term = Objective({name: 1.0}, T, direction).output_term(name)
    value, gradient = term(logits.detach().clone(), teacher.clone())
    torch.testing.assert_close(value, expected.detach(), **EXACT)
    torch.testing.assert_close(gradient, logits.grad, **EXACT)


def test_divergences_by_hand():
    """p = (1/2, 1/2), q = (1/4, 3/4), so m = (3/8, 5/8); T = 1."""
    logits, teacher = torch.zeros(1, 2).double(), torch.tensor([[1.0, 3.0]]).double().log()
    values = {
        direction: Objective({"kl": 1.0}, 1.0, direction).output_term("kl")(logits, teacher)[0]
        for direction in objective.KL_DIRECTIONS
    }
    assert values["merged||teacher"].item() == pytest.approx(math.log(4 / 3) / 2)
    assert values["teacher||merged"].item() == pytest.approx(
        math.log(1 / 2) / 4 + 3 * math.log(3 / 2) / 4
    )
    js, _ = Objective({"js": 1.0}, 1.0).output_term("js")(logits, teacher)
    p_m = math.log(4 / 3) / 2 + math.log(4 / 5) / 2
    q_m = math.log(2 / 3) / 4 + 3 * math.log(6 / 5) / 4
    assert js.item() == pytest.approx((p_m + q_m) / 2)


def test_the_papers_formulas():
    logits, teacher = normal(7, 11).requires_grad_(), normal(7, 11, seed=1)
    expected = ((logits - teacher) ** 2).sum() / 3
    expected.backward()
    paper = Objective({"mse": 1.0, "cosine": 1.0, "l2": 1.0}, formulas="paper", datasets=3)
    value, gradient = paper.output_term("mse")(logits.detach(), teacher)
    torch.testing.assert_close(value, expected.detach(), **EXACT)
    torch.testing.assert_close(gradient, logits.grad, **EXACT)
    block = normal(2, 4, 5)
    similarity = sum(
        F.cosine_similarity(a, b, dim=0)
        for layer in block
        for a, b in itertools.combinations(layer, 2)
    )
    penalties = paper.penalties([block])
    torch.testing.assert_close(penalties["cosine"], similarity, **EXACT)
    torch.testing.assert_close(penalties["l2"], (block**2).sum(), **EXACT)


@pytest.mark.parametrize("wide", [1, 26, head.WIDE])  # one token, two, all of a chunk at a time
def test_chunked_loss_of_several_terms_and_datasets(wide, monkeypatch):
    monkeypatch.setattr(head, "CHUNK", 3)
    monkeypatch.setattr(head, "WIDE", wide)
    hidden, weight = normal(11, 6).requires_grad_(), normal(13, 6, seed=1).requires_grad_()
    parts = [(0, 7), (7, 11)]
    teachers = [normal(stop - start, 6, seed=2 + start) for start, stop in parts]
    heads = [normal(13, 6, seed=20 + start) for start, _ in parts]
    chosen = Objective({"kl": 0.7, "js": 0.1, "mse": 0.2, "entropy": -0.3}, T, "merged||teacher")
    expected = 0
    for (start, stop), states, matrix in zip(parts, teachers, heads, strict=True):
        for name, factor in chosen.weights.items():
            term = plain_term(
                name, chosen.kl_direction, hidden[start:stop] @ weight.T, states @ matrix.T
            )
            expected = expected + factor * term / (stop - start)
    wanted = torch.autograd.grad(3 * expected, [hidden, weight])
    signals = zip(parts, teachers, heads, strict=True)
    segments = [Segment(*part, states, OutputHead(matrix)) for part, states, matrix in signals]
    total, terms = output_loss(hidden, OutputHead(weight), segments, chosen)
    actual = torch.autograd.grad(3 * total, [hidden, weight])
    torch.testing.assert_close(total, expected, **EXACT)
    torch.testing.assert_close(list(actual), list(wanted), **EXACT)
    by_hand = sum(f * v for f, v in zip(chosen.weights.values(), terms, strict=True))
    torch.testing.assert_close(by_hand, total.detach(), **EXACT)


def plain_penalty(name, layer):
    """A penalty of one layer's coefficients (N, in), pair by pair."""
    pairs = list(itertools.combinations(layer, 2))
    if name == "cosine":
        return sum(F.cosine_similarity(a, b, dim=0) for a, b in pairs) / len(pairs)
    if name == "overlap":
        smaller = [min(abs(x), abs(y)) for a, b in pairs for x, y in torch.stack([a, b]).T]
        return sum(smaller) / len(pairs)
    return sum(row.norm(1 if name == "l1" else 2) for row in layer)


@pytest.mark.parametrize("name", ["cosine", "l1", "l2", "overlap"])
def test_penalties_sum_over_layers_and_average_over_pairs(name):
    wide, narrow = normal(2, 3, 5), normal(1, 3, 4, seed=1)
    expected = sum(float(plain_penalty(name, layer)) for layer in [*wide, *narrow])
    actual = Objective({"kl": 1.0, name: 0.5}).penalties([wide, narrow])
    assert actual[name].item() == pytest.approx(expected, rel=1e-12)


def test_penalties_by_hand():
    block = torch.tensor([[[1.0, 0.0, -2.0], [0.0, 3.0, 1.0]]])
    assert objective.overlap(block).item() == pytest.approx(0 + 0 + 1)
    assert objective.l1(block).item() == pytest.approx(7)
    assert objective.l2(block).item() == pytest.approx(5**0.5 + 10**0.5)
    assert objective.cosine(block).item() == pytest.approx(-2 / 50**0.5)
    single = block[:, :1]
    assert objective.cosine(single).item() == objective.overlap(single).item() == 0


@pytest.mark.parametrize("small", [0, 1 << 16])
@pytest.mark.parametrize("block", [1, 7, 1 << 16])  # one row, two rows, all rows at a time
@pytest.mark.parametrize("shape", [(3,), (1, 3), (5, 1), (1, 1)])
def test_merged_weight_and_its_gradient(shape, block, small, monkeypatch):
    monkeypatch.setattr(layers, "SMALL", small)
    monkeypatch.setattr(layers, "CPU_BLOCK", block)
    weights = [normal(5, 3, seed=i) for i in range(3)]
    coefficients = normal(3, *shape, seed=5).requires_grad_()
    upstream = normal(5, 3, seed=6)
    if shape[-1] == 3:
        parts = [w @ torch.diag(c.view(3)) for w, c in zip(weights, coefficients, strict=True)]
    else:
        full = [c.expand(5, 1).reshape(5) for c in coefficients]
        parts = [torch.diag(c) @ w for w, c in zip(weights, full, strict=True)]
    expected = sum(parts)
    (wanted,) = torch.autograd.grad((expected * upstream).sum(), coefficients)
    layer = MergedLinear(weights)
    layer.coefficients = coefficients
    (actual,) = torch.autograd.grad((layer.merged_weight() * upstream).sum(), coefficients)
    torch.testing.assert_close(layer.merged_weight(), expected, **EXACT)
    torch.testing.assert_close(actual, wanted, **EXACT)


@pytest.mark.parametrize("small", [0, 1 << 16])
@pytest.mark.parametrize("block", [7, 1 << 16])
def test_merged_weight_of_bfloat16_experts_is_rounded_once(block, small, monkeypatch):
    monkeypatch.setattr(layers, "SMALL", small)
    monkeypatch.setattr(layers, "CPU_BLOCK", block)
    weights = [normal(8, 6, seed=i).to(torch.bfloat16) for i in range(3)]
    layer = MergedLinear(weights)
    layer.coefficients = torch.full((3, 6), 1 / 3)
    exact = sum(w.double() for w in weights) / 3
    assert layer.merged_weight().dtype == torch.bfloat16
    # Half a unit in the last place of a bf16 number is at most 2^-8 of it.
    assert ((layer.merged_weight().double() - exact).abs() <= exact.abs() * 2**-7.99).all()


def test_minimum_of_a_quadratic_objective_is_the_least_squares_solution():
    """Output layer only, MSE: the loss is quadratic in the coefficients, so solved exactly."""
    weights = [normal(9, 4, seed=i) for i in range(2)]
    data = [normal(30, 4, seed=10 + i) for i in range(2)]
    # The merged logits of a token x are sum_ij c_ij x_j W_i[:, j]: linear in c.
    design = torch.cat([torch.einsum("tj,imj->tmij", x, torch.stack(weights)) for x in data])
    target = torch.cat([x @ w.T for x, w in zip(data, weights, strict=True)])
    solution = torch.linalg.lstsq(design.reshape(-1, 8), target.reshape(-1, 1)).solution
    layer = MergedLinear(weights)
    layer.coefficients = torch.full((2, 4), 0.5, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS(
        [layer.coefficients],
        max_iter=300,
        tolerance_grad=1e-12,
        tolerance_change=0,
        line_search_fn="strong_wolfe",
    )
    heads = [OutputHead(weight) for weight in weights]
    segments = [Segment(0, 30, data[0], heads[0]), Segment(30, 60, data[1], heads[1])]

    def closure():
        optimizer.zero_grad()
        head = OutputHead(layer.merged_weight())
        total, _ = output_loss(torch.cat(data), head, segments, Objective({"mse": 1.0}))
        total.backward()
        return total

    optimizer.step(closure)
    torch.testing.assert_close(
        layer.coefficients.detach(), solution.view(2, 4), rtol=1e-6, atol=1e-8
    )


@pytest.mark.parametrize(
    ("weights", "changes", "message"),
    [
        ({"kl": 1.0, "cosin": 0.1}, {}, "did you mean 'cosine'"),
        ({"cosine": 1.0}, {}, "at least one of kl, js, mse and entropy"),
        ({"kl": 0.0}, {}, "at least one of kl, js, mse and entropy"),
        ({"kl": "1"}, {}, "give a number"),
        ({"kl": float("nan")}, {}, "weight of kl is nan; give a finite number"),
        ({"kl": 1.0}, {"formulas": "papr"}, "did you mean 'paper'"),
        ({"kl": 1.0}, {"kl_direction": "teacher|merged"}, "did you mean 'teacher||merged'"),
        ({"kl": 1.0}, {"temperature": 0.0}, "must be positive"),
    ],
)
def test_bad_objectives_are_refused(weights, changes, message):
    with pytest.raises(UserError, match=message.replace("|", r"\|")):
        Objective(weights, **changes)
