"""The paper's configuration on stand-ins: fetched, converted, calibrated, taught, merged."""

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from common.errors import UserError
from paper.cli import main
from paper.rehearsal import cli
from workflow import configuration

ROOT = Path(__file__).resolve().parents[2]
PLAIN = ["--engine", "sqlite"]


@pytest.fixture(scope="module")
def rehearsal(tmp_path_factory):
    folder = tmp_path_factory.mktemp("rehearsal") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("BOTTLE_DATA", raising=False)
        patch.setattr(cli, "VLLM", Path("none"))
        assert main(["rehearse", *PLAIN, "--out", str(folder)]) == 0
        yield folder


def test_the_stand_ins_are_of_the_published_kinds(rehearsal):
    from transformers import AutoConfig, AutoTokenizer

    mirror = rehearsal / "mirror"
    mistral = AutoTokenizer.from_pretrained(mirror / "mistralai" / "Mistral-7B-v0.1")
    abel = AutoTokenizer.from_pretrained(mirror / "GAIR" / "Abel-7B-002")
    llama = AutoTokenizer.from_pretrained(mirror / "meta-llama" / "Meta-Llama-3-8B-Instruct")
    assert len(abel) == len(mistral) + 1 and "[PAD]" in abel.get_vocab()
    assert AutoConfig.from_pretrained(mirror / "GAIR" / "Abel-7B-002").vocab_size == len(abel)
    text = "質問: ☃ 3+4=?"  # the snowman is in no piece: bytes stand for it
    for tokenizer in (mistral, abel, llama):
        assert tokenizer.decode(tokenizer(text, add_special_tokens=False)["input_ids"]) == text
    assert "<0xE2>" in mistral.convert_ids_to_tokens(mistral("☃")["input_ids"])
    assert (mirror / "GAIR" / "Abel-7B-002" / "pytorch_model.bin").exists()
    assert (mirror / "augmxnt" / "shisa-gamma-7b-v1" / "model.safetensors.index.json").exists()


def test_only_sizes_and_places_differ_from_the_papers_configuration(rehearsal):
    paper = yaml.safe_load((ROOT / "paper.yaml").read_text(encoding="utf-8"))
    ours = yaml.safe_load((rehearsal / "config.yaml").read_text(encoding="utf-8"))
    assert set(ours) == set(paper)
    assert set(ours["evaluation"]) == set(paper["evaluation"]) | {"limit"}
    for case, entry in paper["cases"].items():
        title = ours["cases"][case]["title"]
        assert title.endswith(entry["title"]) and "tiny random models" in title
        assert ours["cases"][case] | {"size": entry["size"], "title": entry["title"]} == entry
    for name, row in paper["methods"].items():
        assert set(ours["methods"][name]) == set(row)


def test_a_folder_is_kept_while_it_is_what_would_be_made(rehearsal, tmp_path, capsys):
    weights = rehearsal / "mirror" / "GAIR" / "Abel-7B-002" / "pytorch_model.bin"
    before = weights.stat().st_mtime_ns
    python = tmp_path / "bin" / "python"
    python.parent.mkdir()
    python.write_text("#!/bin/sh\nexit 0\n")
    python.chmod(0o755)
    assert main(["rehearse", *PLAIN, "--out", str(rehearsal), "--vllm", str(python)]) == 0
    assert "by vLLM" in capsys.readouterr().out
    assert weights.stat().st_mtime_ns == before
    config = yaml.safe_load((rehearsal / "config.yaml").read_text(encoding="utf-8"))
    assert config["evaluation"]["interpreters"] == {"vllm": str(python)}
    by_vllm = [config["methods"]["dam_paper"], *(c["base"] for c in config["cases"].values())]
    assert all(entry["backend"] == "vllm" for entry in by_vllm)
    configuration.resolve(config)
    copies = tmp_path / "copies"
    copies.mkdir()
    with pytest.raises(UserError, match="no rehearsal of this code and these options"):
        main(["rehearse", *PLAIN, "--out", str(rehearsal), "--benchmarks", str(copies)])
    assert main(["rehearse", *PLAIN, "--out", str(rehearsal)]) == 0


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--benchmarks", "nowhere"], "--benchmarks nowhere: no such folder"),
        (["--vllm", "nowhere"], "nowhere: no Python with vLLM"),
    ],
)
def test_what_is_not_there_is_told(arguments, words, tmp_path):
    with pytest.raises(UserError, match=words):
        main(["rehearse", "--out", str(tmp_path / "new"), *arguments])
    assert not (tmp_path / "new").exists()


def test_a_folder_in_use_is_refused(tmp_path):
    (tmp_path / "a").write_text("mine")
    with pytest.raises(UserError, match="is not empty"):
        main(["rehearse", *PLAIN, "--out", str(tmp_path)])


@pytest.mark.workflow
def test_a_few_rows_run_through_the_rules(rehearsal, tmp_path):
    from safetensors import safe_open

    rows = ("soup", "dare_ties_base", "evollm", "dam_paper")
    targets = [f"results/rehearsal/case1/merges/{row}/manifest.json" for row in rows]
    scored = {"case1": "evollm", "case2": "sql"}
    targets += [f"results/rehearsal/{case}/scores/test/{row}.json" for case, row in scored.items()]
    done = subprocess.run(
        [
            *(sys.executable, "-m", "workflow", "reproduce", "--cores", "2"),
            # Snakemake's --quiet, which comes before, would take the targets for its own.
            *("--config", str(rehearsal / "config.yaml"), "--rerun-incomplete", *targets),
        ],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    case = tmp_path / "results" / "rehearsal" / "case1"
    for row in rows:
        assert (case / "merges" / row / "manifest.json").exists(), done.stdout + done.stderr
    # Abel's own token is cropped: the merge has the base's vocabulary.
    size = json.loads((case / "models" / "base" / "config.json").read_text())["vocab_size"]
    own = json.loads((case / "models" / "abel" / "config.json").read_text())["vocab_size"]
    assert own == size + 1
    for row in ("soup", "dam_paper"):
        made = json.loads((case / "merges" / row / "config.json").read_text())
        assert made["vocab_size"] == size
        with safe_open(case / "merges" / row / "model.safetensors", "pt") as weights:
            assert weights.get_slice("lm_head.weight").get_shape()[0] == size
    lock = json.loads((tmp_path / "results" / "rehearsal" / "hub.lock.json").read_text())
    assert {"mistral_7b", "abel_7b", "evollm_jp_7b", "metamath"} <= set(lock)
    config = configuration.load(rehearsal / "config.yaml")
    for case, model in scored.items():
        path = tmp_path / "results" / "rehearsal" / case / "scores" / "test" / f"{model}.json"
        tasks = json.loads(path.read_text())["tasks"]
        assert sorted(tasks) == sorted(config.cases[case].tasks)
        for about in tasks.values():
            assert about["items"] == 4
            assert "hand-made rows in the published columns" in about["stand_in"].values()


@pytest.mark.rehearsal
@pytest.mark.timeout(3600)
def test_the_paper_runs_from_downloads_to_the_page(tmp_path):
    folder = tmp_path / "run"
    assert main(["rehearse", "--out", str(folder)]) == 0
    command = [sys.executable, "-m", "workflow", "reproduce", "--cores", "2"]
    command += ["--config", "config.yaml"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}

    def run():
        return subprocess.run(
            command, cwd=folder, capture_output=True, text=True, env=environment, check=False
        )

    done = run()
    assert done.returncode == 0, done.stdout + done.stderr
    results = folder / "results" / "rehearsal"
    assert not list(results.rglob("*.failed"))
    config = yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8"))
    for case, entry in config["cases"].items():
        rows = [*_rows(results, entry["table"]), *_rows(results, f"{entry['table']}_more")]
        made = {row for row, about in config["methods"].items() if case in about.get("cases", case)}
        assert {row["id"] for row in rows} == {"chance", "base", *entry["experts"], *made}
        assert {row["status"] for row in rows} == {"ok"}
        assert len({row["Avg"] for row in rows}) > 1
        tasks = {task for column in entry["columns"] for task in column["tasks"]}
        for path in (results / case / "scores" / "test").glob("*.manifest.json"):
            model = path.name.removesuffix(".manifest.json")
            scores = json.loads(path.with_name(f"{model}.json").read_text())
            assert set(scores["tasks"]) == tasks
            assert {about["items"] for about in scores["tasks"].values()} == {4}
            parent = entry["base"] if model == "base" else entry["experts"].get(model)
            asked = (parent or config["methods"][model]).get("backend", "hf")
            assert scores["backend"] == asked
    assert [row["runs"] for row in _rows(results, "table3")] == ["1", "1", "1"]
    page = (results / "report.html").read_text(encoding="utf-8")
    assert "A rehearsal on tiny random models" in page and "only stand in" in page
    for table in ("Table 1.", "Table 2.", "Table 3."):
        assert table in done.stdout
    again = run()
    assert again.returncode == 0 and "Nothing to be done" in again.stdout, again.stdout


def _rows(results, table):
    with open(results / "tables" / f"{table}.csv", encoding="utf-8") as stream:
        return list(csv.DictReader(stream))
