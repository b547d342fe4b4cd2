"""The smoke check against transformers' own loss, and with models that are broken."""

import json
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from checkpoints.cli import main
from checkpoints.reading import SINGLE, Checkpoint
from checkpoints.smoke import TEXT, lines, measure, smoke
from common.calling import call
from common.errors import UserError

ROOT = Path(__file__).resolve().parents[2]
WORDS = " ".join(f"w{4 + n * n % 40}" for n in range(50))


@pytest.fixture(scope="module")
def models(make_model, tmp_path_factory):
    top = tmp_path_factory.mktemp("smoke")
    return {name: make_model(top / name, seed=n) for n, name in enumerate(("merged", "ja", "base"))}


def breaking(folder, out, name="lm_head.weight", value=float("nan")):
    """Copy a model with one value changed."""
    import shutil

    shutil.copytree(folder, out)
    held = load_file(out / SINGLE)
    held[name][0, 0] = value
    save_file(held, out / SINGLE)
    return out


def test_perplexity_is_that_of_transformers_loss(models):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    found = measure(models["ja"], WORDS)
    model = AutoModelForCausalLM.from_pretrained(models["ja"])
    ids = AutoTokenizer.from_pretrained(models["ja"])(WORDS, return_tensors="pt").input_ids
    with torch.no_grad():
        loss = float(model(ids, labels=ids).loss)
    assert found["tokens"] == 49
    assert found["not_finite"] == 0
    assert found["perplexity"] == pytest.approx(math.exp(loss), rel=1e-5)
    assert found["bits_per_byte"] == pytest.approx(
        loss * 49 / math.log(2) / len(WORDS.encode()), rel=1e-5
    )


def test_a_text_longer_than_the_context_is_read_in_windows(models):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    long = " ".join([WORDS] * 3)  # 150 tokens; the context is 64
    model = AutoModelForCausalLM.from_pretrained(models["ja"])
    ids = AutoTokenizer.from_pretrained(models["ja"])(long).input_ids
    total, count = 0.0, 0
    for begin in range(0, 150, 64):
        window = ids[begin : begin + 64]
        with torch.no_grad():
            logits = model(torch.tensor([window])).logits[0].double().numpy()
        for place, token in enumerate(window[1:]):
            row = logits[place]
            total += np.log(np.exp(row - row.max()).sum()) + row.max() - row[token]
            count += 1
    found = measure(models["ja"], long)
    assert found["tokens"] == count == 147
    assert found["perplexity"] == pytest.approx(math.exp(total / count), rel=1e-5)


def test_the_report_has_the_model_beside_its_parents(models, tmp_path, capsys):
    arguments = ["smoke", "--model", str(models["merged"]), "--out", str(tmp_path / "s.json")]
    for name in ("ja", "base"):
        arguments += ["--parent", f"{name}={models[name]}"]
    assert main(arguments) == 0
    report = json.loads((tmp_path / "s.json").read_text())
    assert report["model"] == measure(models["merged"], TEXT)
    assert report["weights"] == Checkpoint(models["merged"]).fingerprint
    assert report["weights"] != Checkpoint(models["ja"]).fingerprint
    assert list(report["parents"]) == ["base", "ja"]
    assert report["parents"]["ja"] == measure(models["ja"], TEXT)
    printed = capsys.readouterr().out
    assert [line.split()[0] for line in printed.splitlines()] == ["model", "ja", "base"]
    assert f"{report['model']['perplexity']:.4g}" in printed


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_model_with_logits_that_are_not_finite_fails(models, tmp_path, value, capsys):
    broken = breaking(models["merged"], tmp_path / "broken", value=value)
    (tmp_path / "text").write_text(WORDS)
    out = tmp_path / "s.json"
    code = call(
        "checkpoints.cli",
        ["smoke", "--model", str(broken), "--text", str(tmp_path / "text"), "--out", str(out)],
    )
    assert code == 2
    assert "logits are NaN or infinite at 50 positions" in capsys.readouterr().err
    held = json.loads(out.read_text())["model"]
    assert held == {"tokens": 49, "not_finite": 50, "perplexity": None, "bits_per_byte": None}


def test_a_broken_parent_is_shown_and_stops_nothing(models, tmp_path):
    broken = breaking(models["ja"], tmp_path / "broken")
    report = smoke(models["merged"], {"ja": broken}, tmp_path / "s.json", WORDS)
    assert report["parents"]["ja"]["perplexity"] is None
    assert "perplexity none" in lines(report)[1]


def test_a_model_far_worse_than_its_parents_gets_a_note():
    def row(perplexity):
        return {"perplexity": perplexity, "bits_per_byte": 1.0, "tokens": 9, "not_finite": 0}

    def note(own, *parents):
        report = {"model": row(own), "parents": {str(n): row(p) for n, p in enumerate(parents)}}
        return [line for line in lines(report) if line.startswith("note")]

    assert note(99.0, 5.0, 10.0) == []
    assert len(note(101.0, 5.0, 10.0)) == 1
    assert len(note(None, 5.0)) == 1
    assert note(101.0) == []


def test_missing_weights_are_not_made_up(models, tmp_path):
    broken = breaking(models["merged"], tmp_path / "broken", value=0.0)
    held = load_file(broken / SINGLE)
    del held["model.layers.1.mlp.up_proj.weight"]
    save_file(held, broken / SINGLE)
    with pytest.raises(UserError, match=r"no weights for model\.layers\.1\.mlp\.up_proj\.weight"):
        measure(broken, WORDS)


def test_what_cannot_be_read_is_one_line(models, tmp_path):
    with pytest.raises(UserError, match="fewer than two tokens"):
        measure(models["ja"], "w5")
    with pytest.raises(UserError, match="no such folder"):
        measure(tmp_path / "none", WORDS)
    broken = breaking(models["ja"], tmp_path / "broken")
    (broken / "config.json").write_text('{"model_type": "of no kind"}')
    with pytest.raises(UserError, match="transformers cannot load it") as caught:
        measure(broken, WORDS)
    assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match="cannot be read as UTF-8"):
        main(["smoke", "--model", "m", "--out", "o", "--text", str(tmp_path / "none")])
    with pytest.raises(UserError, match="--parent ja: give NAME=PATH"):
        main(["smoke", "--model", "m", "--out", "o", "--parent", "ja"])


@pytest.mark.parametrize("command", [[], ["show"], ["preflight"], ["smoke"]])
def test_help_is_light_and_has_examples(command):
    code = (
        "import sys, runpy; sys.argv = ['checkpoints', *sys.argv[1:], '--help']\n"
        "try: runpy.run_module('checkpoints', run_name='__main__')\n"
        "except SystemExit as end: assert not end.code\n"
        "print(sorted({'torch', 'transformers', 'numpy'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *command], cwd=ROOT, capture_output=True, text=True
    )
    assert done.stdout.rstrip().endswith("[]"), done.stdout + done.stderr
    assert "examples:" in done.stdout
