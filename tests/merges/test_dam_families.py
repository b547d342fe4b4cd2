"""DAM on classes that are no Llama: multipliers, caps, windows, norms and heads of their own.

The other side is transformers' forward of each sample alone, with weights merged by the formula
and gradients by autograd. Weights are float64; transformers computes the softmax in float32, hence
a tolerance of 1e-5 of the largest value. Classes that compute in float32 only have 1e-4.
"""

from __future__ import annotations

import dataclasses
import re

import pytest
import torch
from torch.nn import functional as F

from checkpoints.reading import Checkpoint
from common.errors import UserError
from common.files import read_json
from merges.dam import attention, checking, head
from merges.dam.architecture import skeleton
from merges.dam.data import make_batch
from merges.dam.method import training_parameters
from merges.dam.objective import Objective
from merges.dam.packing import Packing
from merges.dam.sources import load_sources
from merges.dam.states import expert_states
from merges.dam.training import Trainer, train
from merges.engine.config import MergeConfig
from merges.engine.requests import Resuming
from merges.engine.run import merge_to_disk
from merges.methods.adamerging import adamerging
from tests.merges import families

ROWS = [[0, 3, 5], [1, 2, 7]]
KINDS = ("gemma2", "gemma3_text", "granite", "cohere", "phi", "qwen3", "mixtral")
MORE = (
    *("qwen2", "gpt_neox", "gpt2", "qwen3_moe", "gpt_oss", "cohere2", "olmo2", "stablelm", "lfm2"),
    *("falcon_h1", "deepseek_v3", "opt", "mamba", "glm4"),
)
ONE_BY_ONE = ("stablelm", "lfm2", "falcon_h1", "mamba")
IN_FLOAT32 = ("mixtral", "qwen3_moe", "gpt_oss", "deepseek_v3", "mamba", "falcon_h1")
RENAMED = {"gpt_neox": {"lm_head.weight": "embed_out.weight"}}
FORM = {"embeddings": "vector", "norms": "scalar", "temperature": 1.5}


def near(actual, expected, largest=None):
    scale = (expected if largest is None else largest).abs().max().item()
    tolerance = 1e-5 if expected.dtype == torch.float64 else 1e-4
    torch.testing.assert_close(actual, expected, rtol=0, atol=tolerance * scale)


class Plain:
    """Models of transformers, their weights merged by the formula."""

    def __init__(self, request, kind, dtype):
        from transformers import AutoModelForCausalLM

        settings = {"dtype": dtype, "attn_implementation": "eager"}
        models = [
            AutoModelForCausalLM.from_pretrained(model.path, **settings).requires_grad_(False)
            for model in (request.base, *request.experts.values())
        ]
        self.models = models
        self.origin, *self.weights = (dict(model.named_parameters()) for model in models)
        self.renamed = RENAMED.get(kind, {})
        self.transposed = {
            f"{name}.weight"
            for name, module in models[0].named_modules()
            if type(module).__name__ == "Conv1D"
        }

    def merged(self, raw):
        """W = sum_i W_i diag(c_i); else the base's, in a mixture's experts and routers the mean."""
        result = {}
        for name, own in self.origin.items():
            c = raw.get(self.renamed.get(name, name))
            if c is None:
                result[name] = own
                if re.search(r"\.experts\.|\.mlp\.gate\.|\.router\.", name):
                    result[name] = sum(weights[name] for weights in self.weights) / 2
                continue
            pairs = zip(c, self.weights, strict=True)
            if name in self.transposed:
                result[name] = sum((each * weights[name].T).T for each, weights in pairs)
            else:
                result[name] = sum(each * weights[name] for each, weights in pairs)
        return result

    def logits(self, parameters, ids):
        inputs = {"input_ids": ids[None], "use_cache": False}
        return torch.func.functional_call(self.models[0], parameters, (), inputs).logits[0]

    def loss(self, raw, data):
        """sum_i mean over tokens of T^2 KL(merged || expert_i) + half the entropy's T^2 H."""
        parameters, temperature, total = self.merged(raw), FORM["temperature"], 0
        for own, rows, weights in zip(data, ROWS, self.weights, strict=True):
            each, tokens = 0, 0
            for row in rows:
                ids = own.ids[own.starts[row] : own.starts[row + 1]]
                log_p = F.log_softmax(self.logits(parameters, ids) / temperature, -1)
                log_q = F.log_softmax(self.logits(weights, ids) / temperature, -1)
                kl = (log_p.exp() * (log_p - log_q)).sum()
                each = each + kl - 0.5 * (log_p.exp() * log_p).sum()
                tokens += len(ids)
            total = total + temperature**2 * each / tokens
        return total


def compare(kind, folder):
    """Compare teachers' logits, the loss with its gradient, and the merge that is written."""
    dtype = torch.float32 if kind in IN_FLOAT32 else torch.float64
    request = families.make_request(folder, kind, dtype)
    sources = load_sources(request.base, request.experts, request.calibration)
    assert sources.packed == (kind not in ONE_BY_ONE)
    plain, data = Plain(request, kind, dtype), sources.calibrations
    longest = max(own.length(row) for own in data for row in range(len(own)))
    assert longest > families.WINDOW
    for name, weights, own in zip(request.experts, plain.weights, data, strict=True):
        hidden = expert_states(sources.decoder(sources.experts[name]), own, ROWS[0])
        expected = [
            plain.logits(weights, own.ids[own.starts[row] : own.starts[row + 1]]) for row in ROWS[0]
        ]
        near(sources.output_head(sources.experts[name]).logits(hidden), torch.cat(expected))
    parameters = training_parameters(
        preset="paper", samples=4, batch_size=2, objective={"kl": 1.0, "entropy": 0.5}, **FORM
    )
    trainer = Trainer(request, parameters, sources)
    flat = trainer.coefficients.flat
    with torch.no_grad():
        noise = torch.randn(flat.shape, generator=torch.Generator().manual_seed(3))
        flat.add_(0.2 * noise)
    raw = {n: v.clone().requires_grad_() for n, v in trainer.coefficients.named().items()}
    expected = plain.loss(raw, data)
    wanted = torch.autograd.grad(expected, raw.values())
    total, _ = trainer.loss(make_batch(data, ROWS, "all", last=True), ROWS)
    total.backward()
    near(total.detach(), expected.detach())
    actual = trainer.coefficients.named(flat.grad)
    largest = torch.stack([gradient.abs().max() for gradient in wanted])
    for name, gradient in zip(raw, wanted, strict=True):
        near(actual[name], gradient, largest)
    check_written(request, kind, train(request, parameters), folder)


def check_written(request, kind, result, folder):
    """Compare what is written, as transformers reads it, with the formula in float64."""
    from safetensors.torch import save_file
    from transformers import AutoModelForCausalLM

    assert set(result.tensors) == set(request.base.names())
    plain = Plain(request, kind, torch.float64)
    model = folder / "base"  # nothing reads the base any more
    save_file(result.tensors, model / "model.safetensors", metadata={"format": "pt"})
    written = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float64)
    raw = {name: value.double() for name, value in result.extra_tensors.items()}
    for name, expected in plain.merged(raw).items():
        actual, exact = written.get_parameter(name).data, 1e-6 if kind in IN_FLOAT32 else 1e-12
        torch.testing.assert_close(actual, expected, rtol=exact, atol=exact, msg=name)


@pytest.mark.parametrize("kind", KINDS)
def test_loss_gradient_and_merge_are_those_of_the_class(kind, tmp_path):
    compare(kind, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("kind", MORE)
def test_loss_gradient_and_merge_of_more_classes(kind, tmp_path):
    compare(kind, tmp_path)


@pytest.fixture(scope="module")
def gemma(tmp_path_factory):
    """Gemma 2 in float32, with both caps and a window."""
    return families.make_request(tmp_path_factory.mktemp("gemma"), "gemma2")


def loaded(request, monkeypatch):
    monkeypatch.setattr("merges.dam.sources._last", None)
    return load_sources(request.base, request.experts, request.calibration)


def test_attention_that_forgets_a_cap_or_a_window_is_noticed(gemma, monkeypatch, capsys):
    right = attention._explicit_attention
    with monkeypatch.context() as patch:
        patch.setattr(attention, "_explicit_attention", lambda *a: right(*a[:5], None, *a[6:]))
        assert not loaded(gemma, patch).packed
    assert "note: DAM reads the samples of a 'gemma2' model one by one" in capsys.readouterr().err
    with monkeypatch.context() as patch:
        seen = Packing.visible
        patch.setattr(Packing, "visible", lambda s, n, w, t: seen(s, n, w and w + 1, t))
        assert not loaded(gemma, patch).packed
    assert loaded(gemma, monkeypatch).packed


def test_samples_in_a_row_do_not_see_each_other(gemma, monkeypatch):
    sources = loaded(gemma, monkeypatch)
    data, decoder = sources.calibrations[0], sources.decoder(sources.experts["one"])
    rows = [0, 3, 5]
    alone = torch.cat([expert_states(decoder, data, [row]) for row in rows])
    near(expert_states(decoder, data, rows), alone)
    ids = torch.cat([data.ids[data.starts[row] : data.starts[row + 1]] for row in rows])
    as_one = decoder.hidden_states(ids, Packing([len(ids)]))
    first = data.length(0)
    near(as_one[:first], alone[:first])
    assert (as_one[first:] - alone[first:]).abs().max() > 0.1


def test_a_head_without_its_cap_is_refused(gemma, monkeypatch):
    monkeypatch.setattr(checking.Architecture, "finish", None)
    with pytest.raises(UserError, match="its logits are not what its output head makes"):
        loaded(gemma, monkeypatch)


@pytest.mark.parametrize("preset", ["authors-code", "best"])
def test_presets_adamerging_and_a_resumed_training(gemma, preset, tmp_path):
    parameters = training_parameters(preset=preset, samples=6, batch_size=2)
    whole = train(gemma, parameters)
    assert all(tensor.isfinite().all() for tensor in whole.tensors.values())
    state = dataclasses.replace(gemma, resuming=Resuming(tmp_path / "state", 1))
    trainer = Trainer(state, parameters, load_sources(*sources_of(gemma)))
    trainer.step()
    trainer.step()
    assert (tmp_path / "state").exists()
    resumed = train(state, parameters)
    for name, tensor in whole.tensors.items():
        assert torch.equal(tensor, resumed.tensors[name])


def sources_of(request):
    return request.base, request.experts, request.calibration


def test_adamerging_learns_norms_of_the_form_1_plus_w(gemma):
    request = dataclasses.replace(gemma, embeddings_and_norms="merged")
    result = adamerging(request, samples=8, batch_size=4, epochs=2, learning_rate=0.05)
    entropies = [row["entropy"] for row in result.log]
    assert entropies[-1] < entropies[0]
    experts = [expert.state_dict() for expert in gemma.experts.values()]
    for name, c in result.extra_tensors.items():
        base = gemma.base.load(name).double()
        moved = sum(
            own.double() * (expert[name].double() - base)
            for own, expert in zip(c, experts, strict=True)
        )
        torch.testing.assert_close(
            result.tensors[name].double(), base + moved, rtol=1e-5, atol=1e-6
        )
    assert {"model.norm.weight", "model.embed_tokens.weight"} <= set(result.extra_tensors)


def test_experts_of_a_mixture_follow_the_policy(tmp_path):
    request = families.make_request(tmp_path, "mixtral")
    names = [n for n in request.base.names() if ".experts." in n or ".gate." in n]
    assert names
    for policy in ("base", "mean"):
        parameters = training_parameters(samples=2, batch_size=2, moe_experts=policy)
        result = train(request, parameters)
        assert not set(names) & set(result.extra_tensors)
        assert "model.layers.0.self_attn.q_proj.weight" in result.extra_tensors
        for name in names:
            expected = request.base.load(name)
            if policy == "mean":
                expected = sum(own.load(name) for own in request.experts.values()) / 2
            torch.testing.assert_close(result.tensors[name], expected)


@pytest.mark.parametrize("wide", [18, head.WIDE])  # two tokens, all of a chunk at a time
def test_the_head_s_function_is_differentiated(wide, monkeypatch):
    monkeypatch.setattr(head, "CHUNK", 3)
    monkeypatch.setattr(head, "WIDE", wide)
    draw = torch.Generator().manual_seed(0)

    def normal(*shape):
        return torch.randn(shape, generator=draw, dtype=torch.float64)

    def finish(product):
        return 2 * torch.tanh(0.7 * product / 2)

    leaves = [
        normal(7, 4).requires_grad_(),
        normal(9, 4).requires_grad_(),
        normal(9).requires_grad_(),
    ]
    states, matrix, bias = normal(7, 4), normal(9, 4), normal(9)
    log_p = finish(leaves[0] @ leaves[1].T + leaves[2]).log_softmax(-1)
    log_q = finish(states @ matrix.T + bias).log_softmax(-1)
    expected = F.kl_div(log_p, log_q, log_target=True, reduction="batchmean")
    wanted = torch.autograd.grad(expected, leaves)
    segments = [head.Segment(0, 7, states, head.OutputHead(matrix, bias, finish))]
    own = head.OutputHead(leaves[1], leaves[2], finish)
    total, _ = head.output_loss(leaves[0], own, segments, Objective({"kl": 1.0}, 1.0))
    torch.testing.assert_close(total, expected)
    torch.testing.assert_close(torch.autograd.grad(total, leaves), wanted)


def test_wrappers_and_quantised_models_are_refused_in_one_line(tmp_path):
    request = families.make_request(tmp_path, "llama", rows=2)
    told = read_json(tmp_path / "base" / "config.json")
    wrapped = {"model_type": "llava", "text_config": told}
    with pytest.raises(UserError, match=r"'llava' model, text with pictures or sound; .* first$"):
        skeleton(wrapped)
    small = families.quantised(tmp_path / "small", request.base, "bitsandbytes", torch.uint8)
    for method in ("dam", "adamerging"):
        config = MergeConfig(
            method, Checkpoint(small), request.experts, calibration=request.calibration
        )
        with pytest.raises(UserError, match=r"is quantised, .*; merge the models in full precis"):
            merge_to_disk(tmp_path / "out", config)
    assert not (tmp_path / "out").exists()
    small = families.quantised(tmp_path / "fp8", request.base, "fp8", torch.float8_e4m3fn)
    with pytest.raises(UserError, match="convert the checkpoint to BF16"):
        Checkpoint(small)
