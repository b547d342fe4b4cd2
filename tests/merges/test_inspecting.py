"""`python -m merges inspect`: against least squares on the weights themselves, and by hand."""

from __future__ import annotations

import itertools
import shutil

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from common.calling import call
from common.files import read_json
from common.manifest import check_recorded, write_manifest
from merges import inspecting
from merges.scaling import scaling

EXPERTS = ("a", "b", "c")


@pytest.fixture(scope="module")
def folder(make_model, tmp_path_factory):
    """A base, three experts, of which c did not move in layer 1, and merges of them."""
    top = tmp_path_factory.mktemp("models")
    make_model(top / "base", seed=0)
    generator = np.random.default_rng(1)
    base = load_file(top / "base/model.safetensors")
    for name in EXPERTS:
        make_model(top / name, seed=0)
        moved = {
            key: value + (0 if name == "c" and ".1." in key else 0.05)
            * generator.standard_normal(value.shape).astype(value.dtype)
            for key, value in base.items()
        }  # fmt: skip
        save_file(moved, top / name / "model.safetensors", metadata={"format": "pt"})
    given = ["--base", str(top / "base"), "--experts", *(f"{n}={top / n}" for n in EXPERTS)]
    for method, more in (
        ("linear", []),
        ("ties", ["--set", "density=0.4"]),
        ("task_arithmetic", ["--set", "scale=0.7", 'weights={"a": 1, "b": 0.5, "c": -1}']),
    ):
        assert (
            call("merges.cli", ["--method", method, *given, *more, "--out", f"{top / method}"]) == 0
        )
    return top


def weights(folder, name):
    return {
        key: value.astype(np.float64)
        for key, value in load_file(folder / name / "model.safetensors").items()
    }


def run(folder, *merges, out=None, experts=EXPERTS):
    given = ["inspect", "--base", str(folder / "base"), "--experts"]
    given += [f"{name}={folder / name}" for name in experts]
    given += ["--merges", *(f"{name}={folder / name}" for name in merges)] if merges else []
    return call("merges.cli", [*given, *(["--out", str(out)] if out else [])])


@pytest.fixture(scope="module")
def found(folder, tmp_path_factory):
    out = tmp_path_factory.mktemp("out") / "inspection.json"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("checkpoints.differences._PIECE", 100)  # pieces end inside of rows
        assert run(folder, "linear", "ties", "task_arithmetic", out=out) == 0
    check_recorded(out)
    return read_json(out)


def vectors(folder, keep):
    """Concatenate the chosen tensors of the base, and of what every other model has more."""
    base = weights(folder, "base")
    names = [key for key in base if keep(key)]
    origin = np.concatenate([base[key].ravel() for key in names])
    others = {}
    for name in (*EXPERTS, "linear", "ties", "task_arithmetic"):
        own = weights(folder, name)
        others[name] = np.concatenate([own[key].ravel() for key in names]) - origin
    return origin, others


def agrees(described, origin, others, moved=EXPERTS):
    length = np.linalg.norm
    for name in EXPERTS:
        assert described["drift"][name] == pytest.approx(
            length(others[name]) / length(origin), 1e-5
        )
    for one, two in itertools.combinations(moved, 2):
        cosine = others[one] @ others[two] / length(others[one]) / length(others[two])
        assert described["cosine"][f"{one} {two}"] == pytest.approx(cosine, abs=2e-6)
    signs = np.sign([others[name] for name in EXPERTS])
    several = (signs != 0).sum(axis=0) > 1
    unlike = several & (signs.max(axis=0) == 1) & (signs.min(axis=0) == -1)
    assert described["conflict"] == pytest.approx(unlike.sum() / several.sum(), 1e-5)
    matrix = np.stack([others[name] for name in moved], axis=1)
    for merge in ("linear", "ties", "task_arithmetic"):
        solved, *_ = np.linalg.lstsq(matrix, others[merge])
        rest = length(others[merge] - matrix @ solved) ** 2 / length(others[merge]) ** 2
        kept = [described["kept"][merge][name] for name in moved]
        assert kept == pytest.approx(solved, abs=1e-4)
        assert described["outside"][merge] == pytest.approx(rest, abs=1e-5)
        assert described["length"][merge] == pytest.approx(
            length(others[merge]) / length(origin), 1e-5
        )


def test_every_group_is_as_least_squares_on_the_weights_say(folder, found):
    base = weights(folder, "base")
    seen = 0
    for group in found["groups"]:
        where = inspecting.Group(group["layer"], group["module"])
        names = [key for key in base if inspecting.group_of(key) == where]
        assert group["values"] == sum(base[key].size for key in names)
        seen += group["values"]
        moved = EXPERTS[:2] if group["layer"] == 1 else EXPERTS
        agrees(group, *vectors(folder, names.__contains__), moved=moved)
        if group["layer"] == 1:
            assert group["drift"]["c"] == 0 and group["cosine"]["a c"] is None
            assert group["kept"]["linear"]["c"] is None
    assert seen == sum(value.size for value in base.values())
    places = {(group["layer"], group["module"]) for group in found["groups"]}
    inside = set(itertools.product((0, 1), ("attention", "mlp", "norm")))
    assert inside | {(None, "embedding"), (None, "norm")} <= places


def test_all_is_the_linear_layers_between_embedding_and_head(folder, found):
    agrees(found["all"], *vectors(folder, lambda key: "self_attn" in key or ".mlp." in key))


def test_soups_and_task_arithmetic_keep_their_weights(found):
    assert list(found["all"]["kept"]["linear"].values()) == pytest.approx([1 / 3] * 3, abs=1e-4)
    weighed = found["all"]["kept"]["task_arithmetic"]
    assert list(weighed.values()) == pytest.approx([0.7, 0.35, -0.7], abs=1e-4)
    assert found["all"]["outside"]["linear"] < 1e-6 < 0.1 < found["all"]["outside"]["ties"]


LAYERS = {
    f"model.layers.{n}.{name}.weight": width
    for n, name, width in itertools.product((0, 1), ("self_attn.q_proj", "mlp.up_proj"), (16,))
} | {"model.layers.1.mlp.down_proj.weight": 40, "lm_head.weight": 16}


def learnt(folder, out, drawn, **given):
    """A merge with coefficients that no training made, of the experts in the order c, a, b."""
    shutil.copytree(folder / "linear", out)
    (out / "extra").mkdir()
    file = "extra/coefficients.safetensors"
    biases = {"model.layers.0.self_attn.q_proj.bias": np.full(len(EXPERTS), 9, "float32")}
    save_file(drawn | biases, out / file)
    write_manifest(
        out / "manifest.json",
        kind="merge",
        parameters={"method": "dam", "experts": ["c", "a", "b"], "set": given},
        inputs={},
        outputs={name: out / name for name in ("model.safetensors", file)},
    )


def draw(models=3):
    generator = np.random.default_rng(2)
    return {
        name: generator.normal(0.4, 0.2, (models, width)).astype(np.float32)
        for name, width in LAYERS.items()
    }


def scaled(tensors, order):
    """Rescaling and mixing, column by column."""
    columns = [column for tensor in tensors for column in np.asarray(tensor, np.float64).T]
    sums = [sum(column) for column in columns]
    mean = sum(sums) / len(sums)
    spread = (sum((each - mean) ** 2 for each in sums) / len(sums)) ** 0.5
    parts = {n: sum(c[k] for c in columns) / sum(sums) for k, n in enumerate(order)}
    return {"sum": mean, "spread": spread, "shares": parts}


def test_coefficients_rescale_and_mix_as_a_file_made_by_hand_says(folder, tmp_path, capsys):
    drawn, wide = draw(), draw(4)
    learnt(folder, tmp_path / "dam", drawn, task_vectors=False)
    learnt(folder, tmp_path / "with_base", wide, base_source=True)
    learnt(folder, tmp_path / "changes", drawn, task_vectors=True)
    own = [f"{n}={tmp_path / n}" for n in ("dam", "with_base", "changes")]
    given = ["inspect", "--base", f"{folder / 'base'}", "--experts"]
    given += [*(f"{n}={folder / n}" for n in EXPERTS), "--merges", f"soup={folder / 'linear'}"]
    assert call("merges.cli", [*given, *own, "--out", str(tmp_path / "found.json")]) == 0
    found = read_json(tmp_path / "found.json")

    def agrees_with(described, choose, merges=("dam", "with_base")):
        # Neither the soup nor coefficients of task vectors rescale what models share.
        assert set(described["coefficients"]) == set(merges)
        for merge in merges:
            order, file = ("cab", drawn) if merge == "dam" else (("base", *"cab"), wide)
            wanted = scaled([file[name] for name in file if choose(name)], order)
            seen = described["coefficients"][merge]
            assert seen["shares"] == pytest.approx(wanted.pop("shares"), rel=1e-5)
            assert {k: seen[k] for k in wanted} == pytest.approx(wanted, rel=1e-5)

    agrees_with(found["all"], lambda name: ".layers." in name)
    for group in found["groups"]:
        part = {"attention": "self_attn", "mlp": "mlp", "head": "lm_head"}.get(group["module"], "?")
        where = f"layers.{group['layer']}.{part}" if group["module"] != "head" else part
        merges = [] if part == "?" else ["dam", "with_base"]
        agrees_with(group, lambda name, where=where: where in name, merges)
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    (shown,) = [line for line in lines if line[:3] == ["dam", "1", "mlp"]]
    wanted = scaled([drawn[name] for name in drawn if "1.mlp" in name], "cab")
    assert shown[3:5] == [f"{wanted[key]:.3f}" for key in ("sum", "spread")]
    assert shown[5:7] == ["c", f"{wanted['shares']['c']:.3f},"]


def test_a_pure_rescaling_mixes_nothing_and_a_pure_mixing_rescales_nothing():
    twice = scaling(["a", "b"], [np.ones((2, 5)), np.ones((2, 3))])
    assert twice == {"sum": 2, "spread": 0, "shares": {"a": 0.5, "b": 0.5}}
    part = np.linspace(-1, 1, 5)
    assert scaling(["a", "b"], [np.stack([part, 1 - part])])["sum"] == pytest.approx(1)
    assert scaling(["a", "b"], [np.stack([part, -part])])["shares"] == {"a": None, "b": None}


@pytest.mark.parametrize("damage", ["rows", "nan", "bytes", "edited"])
def test_damaged_coefficients_are_one_line_that_names_their_file(folder, tmp_path, capsys, damage):
    drawn, out = draw(2 if damage == "rows" else 3), tmp_path / "dam"
    if damage == "nan":
        drawn["lm_head.weight"][1, 2] = np.nan
    learnt(folder, out, drawn)
    if damage in ("bytes", "edited"):
        (out / "extra/coefficients.safetensors").write_bytes(b"no tensors")
    if damage == "bytes":
        (out / "manifest.json").unlink()
        files = {"extra/coefficients.safetensors": out / "extra/coefficients.safetensors"}
        about = {"method": "dam", "experts": list(EXPERTS), "set": {}}
        write_manifest(
            out / "manifest.json", kind="merge", parameters=about, inputs={}, outputs=files
        )
    given = ["inspect", "--base", f"{folder / 'base'}", "--experts", f"a={folder / 'a'}"]
    saved = tmp_path / "found.json"
    assert call("merges.cli", [*given, "--merges", f"dam={out}", "--out", str(saved)]) == 2
    (error,) = [x for x in capsys.readouterr().err.splitlines() if x.startswith("error:")]
    assert "coefficients.safetensors" in error and "make" in error and not saved.exists()


def test_what_is_printed_is_what_is_written(folder, found, capsys):
    assert run(folder, "linear", "ties", "task_arithmetic") == 0
    lines = capsys.readouterr().out.splitlines()
    (soup,) = [line.split() for line in lines if line.startswith("linear ")]
    whole = found["all"]
    numbers = [*whole["kept"]["linear"].values(), whole["outside"]["linear"]]
    assert soup[1:] == [f"{value:.3f}" for value in (*numbers, whole["length"]["linear"])]
    assert sum(line.split()[:2] == ["1", "mlp"] for line in lines) == 1
    assert run(folder) == 0  # without merges: the experts alone
    assert "kept" not in capsys.readouterr().out


def test_bad_input_is_one_line(folder, make_model, tmp_path, capsys):
    make_model(tmp_path / "wide", seed=0, hidden_size=48)
    given = ["inspect", "--base", str(folder / "base"), "--experts", f"a={folder / 'a'}"]
    for wrong in (f"a={folder / 'b'}", f"m={tmp_path / 'wide'}", f"m={tmp_path / 'none'}"):
        capsys.readouterr()
        out = tmp_path / "out.json"
        assert call("merges.cli", [*given, "--merges", wrong, "--out", str(out)]) == 2
        error = capsys.readouterr().err.splitlines()
        assert len([line for line in error if line.startswith("error:")]) == 1, error
        assert not out.exists()
    broken = weights(folder, "a")
    broken["model.norm.weight"][0] = np.nan
    make_model(tmp_path / "broken", seed=0)
    save_file({k: v.astype(np.float32) for k, v in broken.items()},
              tmp_path / "broken/model.safetensors", metadata={"format": "pt"})  # fmt: skip
    assert call("merges.cli", [*given, "--merges", f"m={tmp_path / 'broken'}"]) == 2
    assert "model.norm.weight" in capsys.readouterr().err
    # A run goes on without it, and says so.
    more = [f"m={tmp_path / 'broken'}", f"b={folder / 'b'}", f"w={tmp_path / 'wide'}"]
    assert call("merges.cli", [*given, "--merges", *more, "--go-on", "--out", str(out)]) == 0
    assert read_json(out)["merges"] == ["b"]
    notes = [line for line in capsys.readouterr().out.splitlines() if line.startswith("note: ")]
    assert [line.split()[1] for line in notes] == ["w", "m"]
