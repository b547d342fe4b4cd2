"""Written prompts: as pinned, as the model reads them, and none for rows that hold theirs."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest

from common.calling import call
from evaluation.suites import load_suites
from tests.evaluation.ja8_rows import ITEMS, write

PINNED = Path(__file__).parent / "prompts"


@pytest.fixture(scope="module")
def folders(tmp_path_factory, make_bpe) -> tuple[Path, Path]:
    """Hand-made rows of the Japanese tasks and two of KoBEST's, and a tokenizer."""
    top = tmp_path_factory.mktemp("asked")
    data = write(top / "data")
    make_bpe(top / "tokenizer")
    rows = [
        {"id": n, "premise": f"비{n}", "question": "결과", "label": n % 2}
        | {"alternative_1": "땅이 말랐다.", "alternative_2": "땅이 젖었다."}
        for n in range(3)
    ]
    (data / "test/kobest").mkdir()
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    (data / "test/kobest/copa.jsonl").write_text(text, encoding="utf-8")
    return data, top / "tokenizer"


def prompts(folders: tuple[Path, Path], out: Path, suites: str, *more: str) -> dict[str, list]:
    """Write prompts by the command and read them, by file."""
    given = ["prompts", "--data", str(folders[0]), "--tokenizer", str(folders[1])]
    assert call("evaluation.cli", [*given, "--suites", suites, "--out", str(out), *more]) == 0
    return {
        str(path.relative_to(out)): [
            json.loads(line)
            for line in gzip.decompress(path.read_bytes()).decode().split("\n")[:-1]
        ]
        for path in out.rglob("*.gz")
    }


def test_prompts_are_as_pinned_in_every_variant(folders, tmp_path):
    found = prompts(folders, tmp_path / "made", "ja8,ja8:0.6")
    for variant, folder in (("0.3", "ja8"), ("0.6", "ja8-0.6")):
        text = (PINNED / f"ja8-{variant}.txt").read_text(encoding="utf-8")
        pinned = dict(section.split("\n", 1) for section in text.split("##### ")[1:])
        for id in ITEMS:
            records = found[f"{folder}/{id}.jsonl.gz"]
            assert len(records) == len(ITEMS[id])
            first = records[0]
            assert first["before"] + first["prompt"] + "|\n" == pinned[id], id
            # All that precedes the item's own text, and nothing of that.
            assert bool(first["before"]) == (id != "xwinograd_ja"), id
            assert "### 応答" not in first["prompt"][:-9]
    choices = found["ja8/jcommonsenseqa.jsonl.gz"][0]["choices"]
    assert choices in [row["choices"] for row in ITEMS["jcommonsenseqa"]]
    sentences = {row["sentence1"] for row in ITEMS["xwinograd_ja"]}
    assert {record["choices"][0] for record in found["ja8/xwinograd_ja.jsonl.gz"]} == sentences
    assert all(record["max_tokens"] >= 1 for record in found["ja8/jsquad.jsonl.gz"])
    manifest = json.loads((tmp_path / "made/manifest.json").read_text())
    assert manifest["kind"] == "prompts" and set(manifest["outputs"]) >= {
        "ja8/mgsm",
        "ja8:0.6/mgsm",
    }


def test_prompts_are_what_a_model_is_asked_and_as_many(folders, tmp_path, monkeypatch):
    from evaluation.backends.base import Backend
    from evaluation.harness import Harness
    from tests.evaluation.conftest import make_model

    read = []

    def encoded(backend, requests):
        read.extend(request.args for request in requests)
        raise InterruptedError

    monkeypatch.setattr(Backend, "_pairs", encoded)
    make_model(tmp_path / "model", 400, seed=1)
    given = ["ja8/jcommonsenseqa", "kobest/copa"]
    for name in given:
        harness = Harness(folders[0], [name], "test", folders[1], limit=2)
        with pytest.raises(InterruptedError):
            harness.evaluate_folder(tmp_path / "model", "model")
    found = prompts(folders, tmp_path / "made", ",".join(given), "--limit", "2")
    records = [record for name in given for record in found[f"{name}.jsonl.gz"]]
    assert len(records) == 4
    written = [(r["before"] + r["prompt"], choice) for r in records for choice in r["choices"]]
    assert written == read


def test_a_chat_template_is_part_of_the_prompt(folders, tmp_path):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folders[1], trust_remote_code=False)
    tokenizer.chat_template = (
        "{% for turn in messages %}<{{ turn.role }}>{{ turn.content }}{% endfor %}!"
    )
    tokenizer.save_pretrained(tmp_path / "chat")
    made = (folders[0], tmp_path / "chat")
    found = prompts(made, tmp_path / "made", "kobest/copa", "--chat-template")
    assert [r["before"] for r in found["kobest/copa.jsonl.gz"]] == ["<user>"] * 3
    assert all(r["prompt"].endswith("!") for r in found["kobest/copa.jsonl.gz"])


def test_a_bottles_rows_hold_their_prompts():
    # Without a template and examples, the workflow need not write prompts of them.
    bottle = [t for s in load_suites().values() for t in s.tasks.values() if t.maker == "bottle"]
    assert len(bottle) > 8
    assert not [task.name for task in bottle if task.shots or task.definition.exists()]


def test_bad_input_is_one_line_and_writes_nothing(folders, tmp_path, capsys):
    given = ["prompts", "--data", str(folders[0]), "--tokenizer", str(folders[1]), "--out"]
    given += [str(tmp_path / "made"), "--suites"]
    for suites, more, problem in (
        ("ja8", ["--limit", "0"], "--limit 0: give 1 or more"),
        ("ja9", [], "no suite named 'ja9'"),
        ("kobest/wic", [], "no items in"),
    ):
        assert call("evaluation.cli", [*given, suites, *more]) != 0
        lines = capsys.readouterr().err.strip().splitlines()
        assert len(lines) == 1 and problem in lines[0]
    assert not (tmp_path / "made").exists()
