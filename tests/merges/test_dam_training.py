"""DAM as a whole against a plain implementation: one forward per sample, full logits, autograd."""

from __future__ import annotations

import dataclasses
import json

import pytest
import torch
from safetensors.torch import load_file

from checkpoints.reading import Checkpoint
from common.errors import UserError
from common.hashes import SHA256
from merges.dam.data import make_batch
from merges.dam.method import training_parameters
from merges.dam.sources import load_sources
from merges.dam.states import write_teachers
from merges.dam.training import Trainer, train
from tests.merges.dam_world import (
    EVERY_TERM,
    EXPERTS,
    OUTPUT_TERMS,
    ROWS,
    Plain,
    leaves,
    make_world,
    plain_model,
    write_rows,
)

SMALL = training_parameters(samples=4, batch_size=2)


@pytest.fixture(scope="module", params=["llama", "mistral"])
def world64(request, make_model, tmp_path_factory):
    """Llama with biases, Mistral with a sliding window shorter than the samples; float64."""
    changes = {
        "llama": {"attention_bias": True, "mlp_bias": True},
        "mistral": {"sliding_window": 5},
    }
    folder = tmp_path_factory.mktemp(request.param)
    return make_world(folder, make_model, request.param, torch.float64, **changes[request.param])


@pytest.fixture(scope="module")
def world(make_model, tmp_path_factory):
    """Mistral in float32."""
    return make_world(tmp_path_factory.mktemp("world"), make_model, "mistral", torch.float32)


@pytest.mark.parametrize(
    ("tokens", "direction", "embeddings"),
    [
        ("all", "teacher||merged", "base"),
        ("all", "merged||teacher", "merged"),
        ("answer", "teacher||merged", "merged"),
        ("answer", "merged||teacher", "base"),
    ],
)
def test_gradients_of_every_term_agree_with_plain_autograd(world64, tokens, direction, embeddings):
    request = dataclasses.replace(world64, embeddings_and_norms=embeddings)
    sources = load_sources(request.base, request.experts, request.calibration)
    rows = [[0, 3, 5], [1, 2, 7], [4, 6, 0]]
    batch = make_batch(sources.calibrations, rows, tokens)
    plain, raw, start = Plain(request, torch.float64), None, None
    for term in EVERY_TERM:
        # A penalty alone is no objective; a negligible output term carries it.
        carrier = {} if term in OUTPUT_TERMS else {"entropy": 1e-30}
        parameters = SMALL.replace(
            tokens=tokens,
            kl_direction=direction,
            temperature=1.5,
            objective={**carrier, term: 1.0},
        )
        trainer = Trainer(request, parameters, sources)
        flat = trainer.coefficients.flat
        if raw is None:
            noise = torch.randn(flat.shape, generator=torch.Generator().manual_seed(3))
            start = flat.detach() + 0.3 * noise
            raw = leaves(trainer.coefficients.named(start))
            expected = plain.terms(raw, sources.calibrations, rows, tokens, 1.5, direction)
        with torch.no_grad():
            flat.copy_(start)
        wanted = torch.autograd.grad(
            expected[term], raw.values(), retain_graph=True, allow_unused=True
        )
        total, terms = trainer.loss(batch, rows)
        total.backward()
        torch.testing.assert_close(total, expected[term], rtol=1e-9, atol=1e-12)
        assert terms[term].item() == pytest.approx(expected[term].item(), rel=1e-9)
        actual = trainer.coefficients.named(flat.grad)
        assert actual.keys() == raw.keys()
        for (name, leaf), gradient in zip(raw.items(), wanted, strict=True):
            gradient = torch.zeros_like(leaf) if gradient is None else gradient
            tolerance = 1e-8 * gradient.abs().max().item() + 1e-25
            torch.testing.assert_close(actual[name], gradient, rtol=1e-6, atol=tolerance)


def test_twenty_steps_follow_the_plain_implementation(world):
    weights = {"kl": 1.0, "cosine": 0.01, "l1": 1e-6, "l2": 1e-6}
    parameters = training_parameters(
        samples=20, batch_size=1, learning_rate=0.02, schedule="cosine"
    )
    sources = load_sources(world.base, world.experts, world.calibration)
    trainer = Trainer(world, parameters, sources)
    raw = leaves(trainer.coefficients.named())
    plain = Plain(world, torch.float32)
    optimizer = torch.optim.AdamW(raw.values(), lr=0.02, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 20)
    expected = []
    for step in range(20):
        rows = [drawn[step : step + 1] for drawn in trainer.rows]
        terms = plain.terms(raw, sources.calibrations, rows)
        total = sum(factor * terms[name] for name, factor in weights.items())
        optimizer.zero_grad()
        total.backward()
        torch.nn.utils.clip_grad_norm_(raw.values(), 1.0)
        optimizer.step()
        schedule.step()
        expected.append(total.item())
    result = train(world, parameters)
    assert [row["loss"] for row in result.log] == pytest.approx(expected, rel=1e-5)
    assert result.log[0].keys() == {"step", "learning_rate", "loss", *weights, "gradient_norm"}
    for name, leaf in raw.items():
        torch.testing.assert_close(result.extra_tensors[name], leaf.detach(), rtol=0, atol=1e-3)
    with torch.no_grad():
        merged = plain.parameters(result.extra_tensors)
    for name, tensor in merged.items():
        torch.testing.assert_close(result.tensors[name], tensor, rtol=1e-5, atol=1e-6)


def test_training_lowers_the_distance_to_the_experts(world):
    parameters = training_parameters(samples=20, batch_size=4, epochs=4, learning_rate=0.02)
    losses = [row["kl"] for row in train(world, parameters).log]
    assert len(losses) == 20
    assert sum(losses[-5:]) < 0.8 * sum(losses[:5])


def test_cached_teachers_equal_those_on_the_fly(world, tmp_path):
    write_teachers(world.base, world.experts, world.calibration, tmp_path / "cache")
    parameters = SMALL.replace(last_position=True, tokens_per_forward=25)
    cached = train(dataclasses.replace(world, teachers=tmp_path / "cache"), parameters)
    computed = train(world, parameters)
    for ours, theirs in zip(cached.log, computed.log, strict=True):
        assert ours == pytest.approx(theirs, rel=1e-5)
    for name, tensor in cached.tensors.items():
        torch.testing.assert_close(tensor, computed.tensors[name], rtol=1e-4, atol=1e-5)
    assert computed.counted["flops"] > cached.counted["flops"]
    assert cached.counted["steps"] == 2


def test_cached_states_give_the_experts_logits(world, tmp_path):
    write_teachers(world.base, world.experts, world.calibration, tmp_path / "cache")
    data = load_sources(world.base, world.experts, world.calibration).calibrations[1]
    states = load_file(tmp_path / "cache" / "two.safetensors")["hidden"]
    expert = plain_model(world.experts["two"].path, torch.float32)
    for row in (0, 9, ROWS - 1):
        span = slice(data.starts[row], data.starts[row + 1])
        expected = expert(input_ids=data.ids[span][None]).logits[0]
        torch.testing.assert_close(
            states[span] @ expert.lm_head.weight.T, expected, rtol=1e-4, atol=1e-4
        )


def test_teacher_cache_is_deterministic_and_refused_for_others(world, tmp_path):
    for name in "ab":
        write_teachers(world.base, world.experts, world.calibration, tmp_path / name)
    files = [f"{name}.safetensors" for name in EXPERTS] + ["manifest.json"]
    for name in files:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    (tmp_path / "c").mkdir()
    write_rows(tmp_path / "c" / "precious.jsonl", seed=1)
    with pytest.raises(UserError, match="is no earlier teacher signal"):
        write_teachers(world.base, world.experts, world.calibration, tmp_path / "c")
    request = dataclasses.replace(world, teachers=tmp_path / "a")
    # As the fingerprints were before weights had BLAKE3.
    path = tmp_path / "b" / "manifest.json"
    record = json.loads(path.read_text())
    del record["sha256"]
    for name, signal in record["extra"]["experts"].items():
        signal["fingerprint"] = world.experts[name].fingerprint_of(SHA256)
    path.write_text(json.dumps(record))
    new, old = (train(dataclasses.replace(world, teachers=tmp_path / n), SMALL) for n in "ab")
    assert new.log == old.log
    swapped = {**world.experts, "two": world.experts["three"]}
    with pytest.raises(UserError, match="signal of two is that of another checkpoint"):
        train(dataclasses.replace(request, experts=swapped), SMALL)
    other = {**world.calibration, "three": write_rows(tmp_path / "other.jsonl", seed=99)}
    with pytest.raises(UserError, match="signal of three was computed on other data"):
        train(dataclasses.replace(request, calibration=other), SMALL)
    with pytest.raises(UserError, match="no teacher signal of expert four"):
        train(
            dataclasses.replace(
                request,
                experts={"four": world.experts["one"]},
                calibration={"four": world.calibration["one"]},
            ),
            SMALL,
        )


@pytest.mark.parametrize("names", [("one",), ("one", "same", "again")])
def test_one_expert_or_identical_experts_are_reproduced(world, names):
    request = dataclasses.replace(
        world,
        experts=dict.fromkeys(names, world.experts["one"]),
        calibration=dict.fromkeys(names, world.calibration["one"]),
        embeddings_and_norms="merged",
    )
    # The KL is 0 from the start, and so is its gradient but for rounding, which AdamW would
    # magnify; a learning rate this small keeps the coefficients where they are.
    result = train(request, SMALL.replace(objective={"kl": 1.0}, learning_rate=1e-9))
    assert all(abs(row["kl"]) < 1e-5 for row in result.log)
    expert = world.experts["one"].state_dict()
    for name, tensor in result.tensors.items():
        torch.testing.assert_close(tensor, expert[name], rtol=1e-6, atol=1e-7)


def test_bfloat16_weights_have_fp32_coefficients_and_are_rounded_once(make_model, tmp_path):
    wide = make_world(tmp_path / "wide", make_model, "llama", torch.float32)
    half = make_world(tmp_path / "half", make_model, "llama", torch.bfloat16)
    parameters = training_parameters(samples=12, batch_size=4, learning_rate=0.02)
    exact, rounded = train(wide, parameters), train(half, parameters)
    losses = [[row["kl"] for row in result.log] for result in (rounded, exact)]
    assert losses[0] == pytest.approx(losses[1], rel=0.05)
    experts = [expert.state_dict() for expert in half.experts.values()]
    for name, coefficients in rounded.extra_tensors.items():
        assert coefficients.dtype == torch.float32
        total = sum(
            c.double() * expert[name].double()
            for c, expert in zip(coefficients, experts, strict=True)
        )
        # All but the values that fp32's own rounding carries over the border between two bf16.
        same = rounded.tensors[name] == total.to(torch.bfloat16)
        assert rounded.tensors[name].dtype == torch.bfloat16 and same.double().mean() > 0.995


def test_same_seed_same_bytes_and_other_seed_other_draw(world):
    first, again = train(world, SMALL), train(world, SMALL)
    assert first.log == again.log
    for name, tensor in first.tensors.items():
        assert torch.equal(tensor, again.tensors[name])
    other = train(dataclasses.replace(world, seed=1), SMALL)
    assert other.log[0]["kl"] != first.log[0]["kl"]
    assert any(not torch.equal(other.tensors[n], first.tensors[n]) for n in first.tensors)


def test_output_head_can_stay_out(world):
    result = train(world, SMALL.replace(merge_lm_head=False))
    assert "lm_head.weight" not in result.extra_tensors
    assert torch.equal(result.tensors["lm_head.weight"], world.base.load("lm_head.weight"))


def test_tied_output_head_follows_the_embedding(make_model, tmp_path):
    request = make_world(tmp_path, make_model, "llama", torch.float32, tie_word_embeddings=True)
    result = train(dataclasses.replace(request, embeddings_and_norms="merged"), SMALL)
    assert set(result.tensors) == set(request.base.names())
    name = "model.embed_tokens.weight"
    mean = sum(expert.load(name).double() for expert in request.experts.values()) / 3
    torch.testing.assert_close(result.tensors[name].double(), mean, rtol=1e-6, atol=1e-7)


def test_infinite_loss_names_step_and_term(world):
    with pytest.raises(UserError, match=r"DAM: mse became (inf|nan) at step \d+ of 24; lower"):
        train(
            world,
            training_parameters(
                samples=24, learning_rate=1e30, objective={"mse": 1.0, "l2": 1.0}, clip=0
            ),
        )


def test_experts_and_data_must_correspond(world):
    less = {name: path for name, path in world.calibration.items() if name != "two"}
    with pytest.raises(UserError, match="expert two has no calibration data; add --calibration"):
        train(dataclasses.replace(world, calibration=less), SMALL)
    more = {**world.calibration, "four": world.calibration["one"]}
    with pytest.raises(UserError, match="calibration data for 'four', which is no expert"):
        train(dataclasses.replace(world, calibration=more), SMALL)


def test_unknown_architecture_is_refused(world, tmp_path):
    import shutil

    folder = shutil.copytree(world.base.path, tmp_path / "base")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"model_type": "lama"}))
    with pytest.raises(UserError, match="does not recognize this architecture"):
        train(dataclasses.replace(world, base=Checkpoint(folder)), SMALL)


def test_command_lines_write_teachers_and_a_model_that_transformers_loads(world, tmp_path):
    from transformers import AutoModelForCausalLM

    from merges.cli import main

    experts = [f"{name}={expert.path}" for name, expert in world.experts.items()]
    data = [f"{name}={path}" for name, path in world.calibration.items()]
    common = ["--base", str(world.base.path), "--experts", *experts, "--calibration", *data]
    cache, out = tmp_path / "teachers", tmp_path / "merged"
    assert main(["teachers", *common, "--out", str(cache)]) == 0
    settings = ["--set", "samples=4", "--set", "batch_size=2", "--set", "tokens=answer"]
    arguments = ["--method", "dam", *common, "--teachers", str(cache), *settings]
    assert main([*arguments, "--embeddings-and-norms", "base", "--out", str(out)]) == 0
    loaded = dict(AutoModelForCausalLM.from_pretrained(out).named_parameters())
    expected = train(dataclasses.replace(world, teachers=cache), SMALL.replace(tokens="answer"))
    for name, tensor in expected.tensors.items():
        assert torch.equal(loaded[name], tensor)
