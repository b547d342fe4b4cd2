"""The command line: from arguments to a folder, from mistakes to one line and exit code 2."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from checkpoints.reading import Checkpoint
from common.errors import UserError
from common.files import write_json
from merges import cli
from merges.engine import run as engine
from merges.engine.config import MergeConfig

ROOT = Path(cli.__file__).resolve().parent.parent


def arguments(top: Path, out: Path, *more: str, method: str = "ties") -> list[str]:
    experts = [f"{name}={top / name}" for name in ("ja", "math")]
    return [
        "--method", method, "--base", str(top / "base"), "--experts", *experts,
        "--out", str(out), *more,
    ]  # fmt: skip


def test_the_command_line_is_the_engine(llama: Path, tmp_path: Path) -> None:
    rules = [{"layers": [0, 0], "set": {"density": 0.9}}]
    write_json(tmp_path / "rules.json", rules)
    settings = ["--set", "density=0.4", "--set", "merge=sum", "--set", 'weights={"ja":1,"math":2}']
    options = ["--seed", "2", "--embeddings-and-norms", "base"]
    layers = ["--set-layers", str(tmp_path / "rules.json")]
    out = tmp_path / "out"
    assert cli.main(arguments(llama, out, *settings, *options, *layers)) == 0
    base = Checkpoint(llama / "base")
    experts = {name: Checkpoint(llama / name) for name in ("ja", "math")}
    by_density = {
        density: engine.merge_checkpoints(
            MergeConfig(
                "ties",
                base,
                experts,
                {"density": density, "merge": "sum", "weights": [1, 2]},
                seed=2,
                embeddings_and_norms="base",
            )
        ).tensors
        for density in (0.4, 0.9)
    }
    expected = {
        name: by_density[0.9 if "layers.0." in name else 0.4][name] for name in base.names()
    }
    written = load_file(out / "model.safetensors")
    assert all(torch.equal(written[name], expected[name]) for name in expected)
    manifest = json.loads((out / "manifest.json").read_text())
    assert manifest["seed"] == 2
    recipe = manifest["parameters"]
    assert recipe["set_layers"] == rules and recipe["set"]["merge"] == "sum"


def test_two_processes_write_the_same_bytes(llama: Path, tmp_path: Path) -> None:
    for out in ("one", "two"):
        command = [sys.executable, "-m", "merges"]
        command += arguments(llama, tmp_path / out, "--seed", "1", method="dare_ties")
        subprocess.run(command, check=True, cwd=ROOT, capture_output=True)
    one, two = tmp_path / "one", tmp_path / "two"
    for path in one.iterdir():
        if path.name != "cost.json":
            assert path.read_bytes() == (two / path.name).read_bytes(), path.name


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--set", "density=0"], "density: 0 is out of range"),
        (["--set", "density=1.5"], "density: 1.5 is out of range"),
        (["--set", "densty=0.5"], "did you mean 'density'"),
        (["--set", "density"], "give NAME=VALUE"),
        (["--set", "scale=1", "--set", "scale=2"], "scale is set twice"),
        (["--set", "scale=much"], "'much' is no number"),
        (["--set-layers", "nowhere.json"], "nowhere.json: no such file"),
        (["--embeddings-and-norms", "bas"], "did you mean 'base'"),
        (["--calibration", "ja=x.jsonl"], "takes no data"),
        (["--experts", "ja"], "give NAME=PATH"),
        (["--experts", "ja=x", "ja=y"], "given twice"),
        (["--experts", "base=x"], "'base' is the base's name"),
        (["--experts", "new=nowhere"], "nowhere: no such folder"),
        (["--method", "dares_ties"], "did you mean 'dare_ties'"),
    ],
)
def test_mistakes_are_told_in_one_line(
    more: list[str], message: str, llama: Path, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=message) as error:
        cli.main(arguments(llama, tmp_path / "out", *more))
    assert "\n" not in str(error.value)
    assert not (tmp_path / "out").exists()


def test_a_mistake_ends_with_code_2_before_torch_is_imported(tmp_path: Path) -> None:
    wrong = arguments(tmp_path, tmp_path / "out", "--set", "density=7")
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "merges", *wrong],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith("error: method ties, parameter density: 7")
    assert " torch\n" not in done.stderr


@pytest.mark.parametrize("missing", ["method", "experts", "out"])
def test_missing_options_are_named(missing: str, tmp_path: Path) -> None:
    given = {"method": ["ties"], "experts": ["a=b"], "out": [str(tmp_path / "out")]}
    flat = [part for name in given if name != missing for part in (f"--{name}", *given[name])]
    with pytest.raises(UserError, match=f"--{missing} is missing"):
        cli.main(flat)


def test_the_help_teaches(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        cli.main(["--help"])
    assert end.value.code == 0
    shown = capsys.readouterr().out
    assert shown.count("python -m merges --method") >= 3 and "--set-layers" in shown


def test_a_merge_prints_the_notes_of_its_checks(
    llama: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("base", "ja", "math"):
        shutil.copytree(llama / name, tmp_path / name)
        (tmp_path / name / "tokenizer.json").unlink()
    assert cli.main(arguments(tmp_path, tmp_path / "out", method="linear")) == 0
    printed = capsys.readouterr()
    assert "note: " in printed.err and "vocabularies are not compared" in printed.err
    assert "memory: about" not in printed.out + printed.err  # the table is the dry run's
