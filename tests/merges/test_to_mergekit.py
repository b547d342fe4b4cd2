"""`--to-mergekit`: what mergekit makes of it, what we read in it again, and what is refused."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from safetensors.torch import load_file

from common.calling import call
from common.errors import UserError
from merges.cli import main
from merges.engine import registry
from merges.engine.checks import numbers_by_expert
from merges.engine.layer_rules import LayerRules
from merges.mergekit.recipes import RECIPES
from merges.mergekit.translation import translate
from tests.merges.mergekit_runs import EXPERTS, PROGRAM, RUNNER, _family, needs_mergekit

LAYERS = [  # the last rule leaves the norms of the first layer out of what the second one says
    {"gradient": {"weights": {"ja": [0.2, 1.0], "math": [1.0, 0.4], "sql": 0.5}}},
    {"match": "mlp", "set": {"scale": 0.6}},
    {"match": r"layers\.2\.self_attn\.(q|k)_proj", "set": {"scale": 0.3}},
]
SHARES = 'weights={"ja": 1, "math": 0.5, "sql": 0.7}'
# Our recipes: what is set, by method of mergekit; a list is --set-layers, or other options.
SETTINGS: dict[str, list[tuple[Any, ...]]] = {
    "linear": [(), (SHARES, "normalize=false"), (LAYERS[:1],)],
    "slerp": [("t=0.3",), ([{"gradient": {"t": [0, 0.5, 1]}}],)],
    "nuslerp": [
        *((f"along={a}", f"origin={o}") for a, o in (("tensor", "zero"), ("rows", "base"))),
        ('weights={"ja": 0.3, "math": 0.5}', "along=columns", "origin=base"),
    ],
    "multislerp": [(), (SHARES, "normalize=false", "origin=base", "epsilon=1e-6")],
    "karcher": [(), ("max_iterations=2", "tolerance=1e-4")],
    "model_stock": [
        ("average=cosines", "floor=1e-6"),
        ("average=cosines", "floor=1e-6", "along=rows"),
    ],
    "task_arithmetic": [(), (SHARES, "normalize=true"), (LAYERS,)],
    "ties": [
        (),
        (SHARES, 'density={"ja": 0.29, "math": 0.5, "sql": 1}', "merge=sum"),
        (LAYERS, "density=0.35"),
        ("density=0.3", ["--embeddings-and-norms", "base", "--compute-dtype", "float64"]),
    ],
    "dare_ties": [("density=1", "rescale=none"), ("density=1", "rescale=l1", SHARES, "merge=mean")],
    "dare_linear": [("density=1", "rescale=l1"), ("density=1", "rescale=none", "normalize=true")],
    "breadcrumbs": [(), ("density=0.5", "rescale=l1", 'gamma={"ja": 0, "math": 0.1, "sql": 0.2}')],
    "breadcrumbs_ties": [(), ("density=0.3", "scale=0.5", "merge=mean", SHARES)],
    "della": [("density=1", "rescale=none"), ("density=1", "rescale=l1", "merge=sum", SHARES)],
    "della_linear": [("density=1", "rescale=l1"), ("density=1", "rescale=none", "scale=0.4")],
    "sce": [("negligible=1e-6",), ("negligible=1e-6", "density=0.5")],
    "nearswap": [("t=0.05",)],
    "passthrough": [("scale=0.7",), ([{"match": "mlp", "gradient": {"scale": [0.5, 1.5]}}],)],
    "arcee_fusion": [()],
    "ram": [(), ("epsilon=0.1",)],
    "ramplus_tl": [("scope=tensor", "epsilon=0.1"), ("scope=tensor", "r=0.5", "alpha=5")],
}
CASES = [(method, number) for method, found in SETTINGS.items() for number in range(len(found))]
COUNTS = {"slerp": 2, "nuslerp": 2, "nearswap": 1, "passthrough": 1, "arcee_fusion": 1}
STORED = ("float32", "bfloat16")
THRESHOLDS = ("ties", "breadcrumbs", "breadcrumbs_ties", "sce")


@pytest.fixture(scope="module")
def families(tmp_path_factory: pytest.TempPathFactory, make_model: Callable[..., Path]) -> Path:
    """A folder with a tiny Llama and three experts, once in each type."""
    top = tmp_path_factory.mktemp("to")
    for stored in STORED:
        _family(top, make_model, "llama", stored)
    return top / "llama"


def command(families: Path, stored: str, method: str, number: int) -> list[str]:
    """Return the command line of a recipe."""
    folder = families / stored
    ours, experts = RECIPES[method].ours, EXPERTS[: COUNTS.get(method, 3)]
    given = ["--method", ours, "--base", str(folder / "base"), "--experts"]
    given += [f"{name}={folder / name}" for name in experts]
    for setting in SETTINGS[method][number]:
        if isinstance(setting, list) and isinstance(setting[0], str):
            given += setting
        elif isinstance(setting, list):
            path = families / f"{method}-{number}.json"
            path.write_text(json.dumps(setting))
            given += ["--set-layers", str(path)]
        else:
            given += ["--set", setting]
    return given


def written(families: Path, *case: Any) -> Path:
    """Write a case's configuration."""
    path = families / ("-".join(map(str, case)) + ".yml")
    if not path.exists():
        main([*command(families, *case), "--to-mergekit", "--out", str(path)])
    return path


def made(families: Path, *case: Any) -> Path:
    """Merge a case with our engine."""
    out = families / "ours" / "-".join(map(str, case))
    if not out.exists():
        main([*command(families, *case), "--out", str(out)])
    return out


def test_every_method_that_mergekit_has_too_is_here() -> None:
    assert list(SETTINGS) == list(RECIPES)


@pytest.mark.parametrize(("method", "number"), CASES)
def test_what_we_read_in_it_again_is_the_same_recipe(
    families: Path, tmp_path: Path, method: str, number: int
) -> None:
    path, ours = (
        written(families, "float32", method, number),
        made(families, "float32", method, number),
    )
    assert yaml.safe_load(path.read_text())["merge_method"] == method
    main(["--from-mergekit", str(path), "--out", str(tmp_path / "again")])
    name = "model.safetensors"
    assert (tmp_path / "again" / name).read_bytes() == (ours / name).read_bytes()
    old, new = (
        json.loads((folder / "manifest.json").read_text())["parameters"]
        for folder in (ours, tmp_path / "again")
    )
    for key in ("method", "experts", "compute_dtype"):
        assert old[key] == new[key]
    names = load_file(ours / name)
    before, after = (each_tensors(recipe, names) for recipe in (old, new))
    if old["embeddings_and_norms"] == "base":
        for name in filter(re.compile("norm|embed").search, before):
            before[name]["scale"] = 0.0
    assert before == after


def each_tensors(recipe: dict[str, Any], names: Any) -> dict[str, dict[str, Any]]:
    """Return the parameters of every tensor, numbers of each expert by name, null weights as 1."""
    rules = LayerRules(recipe["method"], recipe.get("set_layers", []))
    rules.check_used(names)
    info, experts = registry.info(recipe["method"]), recipe["experts"]
    found = {}
    for name in names:
        values = {**recipe["set"], **rules(name)}
        if "weights" in values and recipe["method"] != "karcher":
            values["weights"] = values["weights"] or dict.fromkeys(experts, 1.0)
        found[name] = numbers_by_expert(info, values, experts)
    return found


@pytest.fixture(scope="module")
def kit(families: Path) -> Path:
    """Run every configuration through mergekit."""
    jobs = [
        [str(written(families, stored, *case)), str(families / "kit" / f"{stored}-{case}")]
        for stored in STORED
        for case in CASES
    ]
    (families / "jobs.json").write_text(json.dumps(jobs))
    python = Path(PROGRAM or "").parent / "python"
    subprocess.run([python, "-c", RUNNER, families / "jobs.json"], check=True, cwd=families)
    return families / "kit"


@needs_mergekit
@pytest.mark.parametrize("case", CASES)
def test_mergekit_makes_the_same_weights(families: Path, kit: Path, case: tuple) -> None:
    """float32: a few roundings of values around 1. bfloat16: rounded once, so that only values in
    the middle of two neighbours may differ, and then by their distance. Of equal magnitudes at a
    threshold, which bfloat16 has many of, mergekit's unstable sort takes any."""
    for stored in STORED:
        ours = load_file(made(families, stored, *case) / "model.safetensors")
        theirs = load_file(kit / f"{stored}-{case}" / "model.safetensors")
        assert set(ours) == set(theirs)
        unequal = chosen = total = 0
        for name, own in ours.items():
            assert own.dtype == theirs[name].dtype
            one, other = own.double().numpy(), theirs[name].double().numpy()
            distance, size = np.abs(one - other), np.maximum(np.abs(one), np.abs(other))
            bound = 1e-6 * (1 + size) if stored == "float32" else 2.0**-7 * size + 1e-6
            if stored == "float32" or case[0] not in THRESHOLDS:
                assert (distance <= bound).all(), (name, distance.max())
            chosen += (distance > bound).sum()
            unequal, total = unequal + (distance > 0).sum(), total + one.size
        assert stored == "float32" or (unequal <= 0.02 * total and chosen <= 0.01 * total)


@needs_mergekit
def test_the_program_itself_takes_a_merged_folders_recipe(families: Path, tmp_path: Path) -> None:
    case = ("bfloat16", "task_arithmetic", 2)
    ours, path, out = made(families, *case), tmp_path / "kit.yml", tmp_path / "out"
    where = [f"{name}={families / 'bfloat16' / name}" for name in ("base", *EXPERTS)]
    main(["--to-mergekit", str(ours), "--locate", *where, "--out", str(path)])
    subprocess.run([PROGRAM or "", "--no-write-model-card", path, out], check=True)
    theirs = load_file(out / "model.safetensors")
    for name, own in load_file(ours / "model.safetensors").items():
        assert (own.double() - theirs[name].double()).abs().max() <= 2.0**-7 * own.abs().max()


def test_a_merged_folders_recipe_has_its_names(families: Path, tmp_path: Path) -> None:
    path = tmp_path / "kit.yml"
    main(["--to-mergekit", str(made(families, "bfloat16", "ties", 1)), "--out", str(path)])
    content = yaml.safe_load(path.read_text())
    assert (content["base_model"], content["dtype"], content["out_dtype"]) == (
        *("base", "float32", "bfloat16"),
    )
    assert content["models"][1] == {
        "model": "math",
        "parameters": {"weight": 0.5, "density": 0.5},
    }


@pytest.mark.parametrize("method", ["dare_ties", "della_linear"])
def test_masks_of_another_generator_are_named(
    families: Path, tmp_path: Path, method: str, capsys: pytest.CaptureFixture
) -> None:
    out = tmp_path / "kit.yml"
    given = command(families, "float32", method, 0)[:8]
    main([*given, "--set", "density=0.5", "rescale=l1", "--to-mergekit", "--out", str(out)])
    assert "note: mergekit draws other random masks" in capsys.readouterr().err
    assert out.read_text().startswith("# mergekit draws other random masks")
    assert translate(out).method == method


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("--method pcb", "cannot express the method pcb: it has none like it"),
        ("--method dare_ties", 'cannot express rescale="density": it has "l1" or "none"'),
        ("--method ties --set scope=model", 'scope="model": it has "tensor" alone'),
        ("--method model_stock", 'average="angles": it has "cosines" alone'),
        ("--method linear --embeddings-and-norms base", "embeddings and norms of the base: this"),
        ("--method ties --donor ja", "cannot express the donor ja"),
        ("--method ties --vocabulary union", "cannot express the vocabulary policy union"),
        (
            "--method della --set rescale=l1 density=0.9 epsilon=0.1",
            "cannot express density=0.9 with epsilon=0.1",
        ),
        ("--method ties --experts copy={top}/ja", "{top}/ja as two models: it takes a folder once"),
        ("--method ties --experts odd={top}/a+b", "ends a model's name at '+'; rename the folder"),
        ("--method ties --experts odd={top}/lora", "mergekit folds an adapter in its model's type"),
        ("--method ties --set density=2", "density: 2 is out of range"),
        ("--method tise", "did you mean 'ties'"),
    ],
)
def test_what_mergekit_cannot_express_is_named(
    families: Path, tmp_path: Path, given: str, message: str, capsys: pytest.CaptureFixture
) -> None:
    top = families / "float32"
    if not (top / "a+b").exists():
        (top / "a+b").symlink_to(top / "sql")
        (top / "lora").mkdir()
        config = {"peft_type": "LORA", "r": 1, "lora_alpha": 1, "target_modules": ["q_proj"]}
        (top / "lora" / "adapter_config.json").write_text(json.dumps(config))
        lora(top / "lora")
    models = ["--base", str(top / "base"), "--experts", *(f"{n}={top / n}" for n in ("ja", "math"))]
    out = tmp_path / "kit.yml"
    code = call(
        "merges.cli",
        [*models, *given.format(top=top).split(), "--to-mergekit", "--out", str(out)],
    )
    error = capsys.readouterr().err
    assert code == 2 and message.format(top=top) in error and error.count("\n") == 1, error
    assert not out.exists()


def lora(folder: Path) -> None:
    import torch
    from safetensors.torch import save_file

    where = "base_model.model.model.layers.0.self_attn.q_proj.lora_"
    factors = {f"{where}A.weight": torch.ones(1, 32), f"{where}B.weight": torch.ones(32, 1)}
    save_file(factors, folder / "adapter_model.safetensors")


def test_other_folders_and_other_weights_are_refused(families: Path, tmp_path: Path) -> None:
    ours, out = made(families, "bfloat16", "nearswap", 0), str(tmp_path / "kit.yml")
    where = {name: f"{name}={families / 'bfloat16' / name}" for name in ("base", "ja")}
    for located, message in (
        ([where["base"]], "--locate: no folder of ja; give all of base, ja"),
        ([*where.values(), f"x={ours}"], "--locate: no model 'x' in the merge"),
        (
            [where["base"], f"ja={families / 'bfloat16' / 'math'}"],
            "not the ja of .*: other weights",
        ),
    ):
        with pytest.raises(UserError, match=message):
            main(["--to-mergekit", str(ours), "--locate", *located, "--out", out])
    with pytest.raises(UserError, match="no merge with a manifest"):
        main(["--to-mergekit", str(families / "bfloat16" / "ja"), "--out", out])
    with pytest.raises(UserError, match="--method is in the merged folder's recipe; leave it out"):
        main(["--to-mergekit", str(ours), "--method", "ties", "--out", out])
    with pytest.raises(UserError, match="is a folder; give the file to write"):
        main(["--to-mergekit", str(ours), "--out", str(tmp_path)])
    assert not Path(out).exists()
