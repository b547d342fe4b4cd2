"""A killed training goes on where it was, bit for bit; a diverged one keeps its last good state."""

from __future__ import annotations

import dataclasses
import io
import subprocess
import sys
import time

import pytest
import torch

from common.errors import UserError
from common.hashes import BLAKE3, SHA256
from merges.cli import main
from merges.dam import resuming
from merges.dam.method import training_parameters
from merges.dam.resuming import training_key
from merges.dam.sources import load_sources
from merges.dam.states import write_teachers
from merges.dam.training import Trainer, train
from merges.engine.requests import Resuming
from tests.merges.dam_world import make_world

LONG = training_parameters(
    samples=24, batch_size=2, epochs=2, learning_rate=0.02, schedule="cosine"
)


@pytest.fixture(scope="module")
def world(make_model, tmp_path_factory):
    """Mistral in float32."""
    return make_world(tmp_path_factory.mktemp("world"), make_model, "mistral", torch.float32)


class Killed(BaseException):
    pass


def recording(world, state, every):
    return dataclasses.replace(world, resuming=Resuming(state, every))


def killed_training(world, parameters, monkeypatch, steps):
    step, done = Trainer.step, []

    def dying(self):
        if len(done) == steps:
            raise Killed
        done.append(step(self))
        return done[-1]

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "step", dying)
        with pytest.raises(Killed):
            train(world, parameters)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"optimizer": "mofo", "coefficient_dtype": "bfloat16", "transform": "tanh"},
        {"tokens_per_forward": 30, "init": "random"},
    ],
)
@pytest.mark.parametrize("cached", [False, True])
def test_killed_and_resumed_equals_uninterrupted(world, tmp_path, monkeypatch, changes, cached):
    if cached:
        write_teachers(world.base, world.experts, world.calibration, tmp_path / "cache")
        world = dataclasses.replace(world, teachers=tmp_path / "cache")
    parameters, state = LONG.replace(**changes), tmp_path / "state"
    recorded = recording(world, state, 5)
    killed_training(recorded, parameters, monkeypatch, 13)
    kept = torch.load(state, weights_only=True)
    assert len(kept["log"]) == kept["counted"]["steps"] == 10
    killed_training(recorded, parameters, monkeypatch, 9)  # as far as step 19
    assert len(torch.load(state, weights_only=True)["log"]) == 15
    resumed, whole = train(recorded, parameters), train(world, parameters)
    assert not state.exists()
    assert resumed.log == whole.log and resumed.counted == whole.counted
    assert len(whole.log) == 24
    for ours, theirs in (
        (resumed.tensors, whole.tensors),
        (resumed.extra_tensors, whole.extra_tensors),
    ):
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_diverged_training_keeps_the_last_good_state(world, tmp_path):
    state = tmp_path / "state"
    recorded = recording(world, state, 2)
    sources = load_sources(world.base, world.experts, world.calibration)
    trainer = Trainer(recorded, LONG, sources)
    for _ in range(5):
        trainer.step()
    good = torch.load(state, weights_only=True)
    assert len(good["log"]) == 4
    trainer.coefficients.flat.data[7] = float("nan")
    with pytest.raises(UserError, match=r"DAM: kl became nan at step 6 of 24; lower .* keeps the"):
        trainer.step()
    assert len(trainer.log) == 5
    again = torch.load(state, weights_only=True)
    assert torch.equal(again["flat"], good["flat"]) and again["flat"].isfinite().all()
    resumed = train(recorded, LONG)
    assert resumed.log == train(world, LONG).log


def test_without_a_state_a_diverged_training_names_step_and_term(world):
    sources = load_sources(world.base, world.experts, world.calibration)
    trainer = Trainer(world, LONG.replace(objective={"mse": 1.0}), sources)
    trainer.step()
    before = trainer.coefficients.flat.detach().clone()
    head = trainer.teachers.heads[1]
    trainer.teachers.heads[1] = dataclasses.replace(head, weight=head.weight * float("inf"))
    with pytest.raises(UserError, match=r"^DAM: mse became (nan|inf) at step 2 of 24; lower[^;]*$"):
        trainer.step()
    assert torch.equal(trainer.coefficients.flat, before)


def test_states_of_other_trainings_and_damaged_ones_are_refused(world, tmp_path, monkeypatch):
    state = tmp_path / "state"
    world = recording(world, state, 1)
    killed_training(world, LONG, monkeypatch, 3)
    content = state.read_bytes()
    for changed, parameters in (
        (world, LONG.replace(learning_rate=0.03)),
        (dataclasses.replace(world, seed=1), LONG),
        (dataclasses.replace(world, embeddings_and_norms="merged"), LONG),
        (dataclasses.replace(world, experts={**world.experts, "two": world.experts["one"]}), LONG),
    ):
        with pytest.raises(UserError, match="state of a training with other models, data or set"):
            train(changed, parameters)
    a_list = io.BytesIO()
    torch.save(["key"], a_list)
    for damaged in (content[: len(content) // 2], b"", b"not a state", a_list.getvalue()):
        state.write_bytes(damaged)
        with pytest.raises(UserError, match="remove it to start anew"):
            train(world, LONG)
    assert not list(tmp_path.glob(".*"))


def test_a_state_that_names_models_by_an_earlier_hash_is_resumed(world, tmp_path, monkeypatch):
    state = tmp_path / "state"
    recorded = recording(world, state, 1)
    killed_training(recorded, LONG, monkeypatch, 3)
    sources = load_sources(world.base, world.experts, world.calibration)
    written = torch.load(state, weights_only=True)
    key = written.pop("key")
    assert key == training_key(world, LONG, sources, BLAKE3) and key.startswith(BLAKE3)
    resuming.write_state(state, training_key(world, LONG, sources, SHA256), written)
    assert train(recorded, LONG).log == train(world, LONG).log
    resuming.write_state(state, f"other:{'0' * 64}", written)
    with pytest.raises(UserError, match="another version of this program"):
        train(recorded, LONG)


def test_the_state_of_another_version_is_refused(world, tmp_path, monkeypatch):
    state = tmp_path / "state"
    world = recording(world, state, 1)
    with monkeypatch.context() as patch:
        patch.setattr(resuming, "_FORMAT", resuming._FORMAT - 1)
        killed_training(world, LONG, monkeypatch, 3)
    content = state.read_bytes()
    with pytest.raises(UserError, match=r"or of another version .*; remove it") as refused:
        train(world, LONG)
    assert "\n" not in str(refused.value) and state.read_bytes() == content


def command(world, out, *more):
    experts = [f"{name}={expert.path}" for name, expert in world.experts.items()]
    data = [f"{name}={path}" for name, path in world.calibration.items()]
    settings = {"samples": 24, "epochs": 12, "learning_rate": 0.01, "schedule": "cosine"}
    return [
        *("--method", "dam", "--base", world.base.path, "--experts", *experts),
        *("--calibration", *data, "--embeddings-and-norms", "base", "--out", out),
        *(part for name, value in settings.items() for part in ("--set", f"{name}={value}")),
        *more,
    ]


@pytest.mark.faults
def test_a_killed_command_goes_on_and_gives_the_same_bytes(world, tmp_path):
    state, out, whole = tmp_path / "state", tmp_path / "killed", tmp_path / "whole"
    recorded = [str(part) for part in command(world, out, "--state", state, "--save-every", 7)]
    process = subprocess.Popen([sys.executable, "-m", "merges", *recorded])
    while not state.exists() and process.poll() is None:
        time.sleep(0.002)
    process.kill()
    assert process.wait() == -9
    assert 7 <= len(torch.load(state, weights_only=True)["log"]) < 288
    assert not out.exists()
    assert main(recorded) == 0
    assert not state.exists()
    assert main([str(part) for part in command(world, whole)]) == 0
    for name in ("model.safetensors", "training.csv", "extra/coefficients.safetensors"):
        assert (out / name).read_bytes() == (whole / name).read_bytes()


def test_a_state_for_a_method_that_does_not_train_is_refused(world, tmp_path):
    experts = [f"{name}={expert.path}" for name, expert in world.experts.items()]
    given = ["--method", "linear", "--experts", *experts, "--out", str(tmp_path / "out")]
    with pytest.raises(UserError, match="method linear trains nothing that --state could record"):
        main([*given, "--state", str(tmp_path / "state")])
