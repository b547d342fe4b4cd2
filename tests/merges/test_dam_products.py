"""Products of 16-bit weights where the processor has none: float64, and no product left out."""

from __future__ import annotations

import dataclasses
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.utils._python_dispatch import TorchDispatchMode

from checkpoints.reading import Checkpoint
from merges.dam import products
from merges.dam.data import make_batch
from merges.dam.method import training_parameters
from merges.dam.packing import Packing
from merges.dam.sources import load_sources
from merges.dam.training import Trainer
from merges.statistics.decoder import LayeredDecoder
from tests.merges import families
from tests.merges.dam_world import EVERY_TERM, make_world

ROWS = [[0, 3, 5], [1, 2, 7], [4, 6, 0]]


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


class Products(TorchDispatchMode):
    """Notes the products and attentions with an argument of a type."""

    def __init__(self, dtype=torch.bfloat16):
        super().__init__()
        self._dtype, self.found = dtype, []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function.name()
        product = any(part in name for part in ("mm", "matmul", "attention", "linear"))
        tensors = [own for own in args if isinstance(own, torch.Tensor)]
        if product and any(own.dtype == self._dtype for own in tensors):
            self.found.append(name)
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("own", [True, False])  # whether the processor has such products
def test_a_narrow_product_is_exact_but_for_one_rounding(dtype, own, monkeypatch):
    monkeypatch.setattr("merges.dam.products.multiplies_bfloat16", lambda: own)
    monkeypatch.setattr("merges.dam.products.WIDENED", 40)  # blocks of five rows, the last of two
    left, matrix = normal(6, 17).to(dtype), normal(17, 8, seed=1).to(dtype)
    exact = left.double() @ matrix.double()
    actual = products.times(left, matrix)
    assert actual.dtype == dtype
    torch.testing.assert_close(actual.double(), exact, rtol=torch.finfo(dtype).eps, atol=1e-6)
    assert torch.equal(products.times(left.double(), matrix.double()), exact)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("biased", [True, False])
def test_a_wide_linear_layer_and_its_gradients_are_rounded_once(dtype, biased, monkeypatch):
    """Against float64: where the processor has no products of the type, blocks of rows are wide."""
    monkeypatch.setattr("merges.dam.products.multiplies_bfloat16", lambda: False)
    monkeypatch.setattr("merges.dam.products.WIDENED", 40)  # blocks of five rows, the last of two
    x, weight, outer = normal(2, 3, 8), normal(17, 8, seed=1), normal(2, 3, 17, seed=2)
    given = [x, weight, normal(17, seed=3)] if biased else [x, weight]
    narrow = [own.to(dtype).requires_grad_() for own in given]
    wide = [own.detach().double().requires_grad_() for own in narrow]
    outer = outer.to(dtype)
    found, exact = products.linear(*narrow), torch.nn.functional.linear(*wide)
    assert found.dtype == dtype
    pairs = [
        (found, exact),
        *zip(
            torch.autograd.grad(found, narrow, outer),
            torch.autograd.grad(exact, wide, outer.double()),
            strict=True,
        ),
    ]
    for one, other in pairs:
        assert one.dtype == dtype
        eps = torch.finfo(dtype).eps
        torch.testing.assert_close(one.double(), other, rtol=eps, atol=2e-6)


@pytest.mark.parametrize("asked", ["inputs", "weight"])
def test_a_wide_linear_layer_computes_what_is_asked_for(asked, monkeypatch):
    monkeypatch.setattr("merges.dam.products.multiplies_bfloat16", lambda: False)
    given = {"inputs": normal(3, 8).bfloat16(), "weight": normal(5, 8, seed=1).bfloat16()}
    assert not products.linear(**given).requires_grad
    whole = [own.clone().requires_grad_() for own in given.values()]
    both = torch.autograd.grad(products.linear(*whole).sum(), whole)
    given[asked].requires_grad_()
    total = products.linear(**given).sum()
    with Products(torch.float32) as counted:
        (found,) = torch.autograd.grad(total, given[asked])
    assert len(counted.found) == 1
    assert torch.equal(found, both[list(given).index(asked)])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_linear_layer_of_wide_weights_is_torch_s(dtype, monkeypatch):
    monkeypatch.setattr("merges.dam.products.multiplies_bfloat16", lambda: False)
    x, weight = normal(3, 8).to(dtype), normal(5, 8, seed=1).to(dtype)
    assert torch.equal(products.linear(x, weight), torch.nn.functional.linear(x, weight))


def test_instructions_that_are_held_back_are_not_counted_on(monkeypatch):
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: True)
    for name in ("ONEDNN_MAX_CPU_ISA", "ATEN_CPU_CAPABILITY"):
        monkeypatch.delenv(name, raising=False)
    assert products.multiplies_bfloat16.__wrapped__()
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "AVX2")
    assert not products.multiplies_bfloat16.__wrapped__()


def in_float32(world, folder):
    """Copy a world, its bfloat16 weights widened."""
    models = {"base": world.base, **world.experts}
    for name, model in models.items():
        shutil.copytree(model.path, folder / name)
        path = folder / name / "model.safetensors"
        wide = {key: value.float() for key, value in load_file(path).items()}
        save_file(wide, path, metadata={"format": "pt"})
    copies = {name: Checkpoint(folder / name) for name in models}
    return dataclasses.replace(world, base=copies.pop("base"), experts=copies)


def trained(world, **given):
    """Return the narrow products of a step's loss and gradient, the loss, and the gradient."""
    own = load_sources(world.base, world.experts, world.calibration)
    trainer = Trainer(world, training_parameters(samples=4, **given), own)
    with Products() as counted:
        rows = ROWS[: len(trainer.sources.calibrations)]
        total, _ = trainer.loss(make_batch(trainer.sources.calibrations, rows, "all", False), rows)
        total.backward()
    return counted.found, total.detach(), trainer.coefficients.flat.grad


KINDS = ("gemma2", "gemma3_text", "granite", "cohere", "phi", "qwen2", "qwen3", "gpt_neox", "gpt2")


@pytest.mark.parametrize("kind", [*KINDS, "llama", "mistral"])
@pytest.mark.parametrize("short", [True, False])
def test_no_product_of_a_training_is_narrow(make_model, tmp_path, monkeypatch, kind, short):
    """Neither in merged layers and heads, nor in teachers, nor in attention over long samples."""
    if kind in KINDS:
        world = families.make_request(tmp_path, kind, torch.bfloat16)
    else:
        world = make_world(tmp_path, make_model, kind, torch.bfloat16)
    if not short:
        monkeypatch.setattr("merges.dam.attention.SHORT", 2)
    given = {"objective": EVERY_TERM}
    monkeypatch.setattr("merges.dam.products.multiplies_bfloat16", lambda: True)
    assert len(trained(world, **given)[0]) > 20  # this is what counts them
    monkeypatch.setattr("merges.dam.products.multiplies_bfloat16", lambda: False)
    narrow, loss, gradient = trained(world, **given)
    assert narrow == []
    _, expected, wanted = trained(in_float32(world, tmp_path / "wide"), **given)
    torch.testing.assert_close(loss, expected, rtol=0.02, atol=0)
    assert (gradient - wanted).norm() < 0.1 * wanted.norm()


def test_no_product_of_a_decoder_by_layers_is_narrow(make_model, tmp_path, monkeypatch):
    world = make_world(tmp_path, make_model, "llama", torch.bfloat16)
    ids, packing, found = torch.tensor([1, 5, 6, 9, 7]), Packing([3, 2]), {}
    for own in (True, False):
        monkeypatch.setattr("merges.dam.products.multiplies_bfloat16", lambda own=own: own)
        decoder = LayeredDecoder(Checkpoint(world.base.path))
        with Products() as counted, torch.no_grad():
            hidden = decoder.embed(ids)
            for number in range(decoder.layers):
                with decoder.layer(number):
                    hidden = decoder.run(hidden, packing)
        found[own] = hidden
        assert bool(counted.found) == own
    assert (found[True] - found[False]).norm() < 0.02 * found[True].norm()
