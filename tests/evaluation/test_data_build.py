"""The data command: whole suites or nothing, manifests, pinned downloads."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from common.errors import UserError
from common.files import read_json, read_jsonl, sha256_file
from common.sources import ROOT
from evaluation.cli import main
from evaluation.data import build, cli, remote, sources
from evaluation.data.sources import File, Source, load_sources
from tests.evaluation.sql_toy import DESCRIPTION, DUMP, write_dumps

BOOLQ = "ID\tText\tQuestion\tAnswer\n1\t글\t질문?\tTrue\n2\t글2\t질문2?\tFALSE\n"
COPA = "ID\tsentence\tquestion\t1\t2\tAnswer\n1\t전제\t결과\t가\t나\t2\n"


def source(task: str, rows: int | None, **changes) -> Source:
    """A source of KoBEST with counts of its own."""
    fields = {
        "licence": "CC BY-SA 4.0",
        "access": "open",
        "host": "hub",
        "repository": "skt/kobest_v1",
        "config": task,
        "revision": "1" * 40,
        "files": {"items": File(f"{task}.tsv", rows), "fewshot": File(f"{task}-train.tsv")},
        "optional": ("fewshot",),
    }
    return Source("kobest", task, **(fields | changes))


@pytest.fixture()
def copies(tmp_path) -> Path:
    folder = tmp_path / "copies/skt/kobest_v1"
    folder.mkdir(parents=True)
    (folder / "boolq.tsv").write_text(BOOLQ)
    (folder / "boolq-train.tsv").write_text(BOOLQ)
    (folder / "copa.tsv").write_text(COPA)
    return tmp_path / "copies"


@pytest.fixture()
def table(monkeypatch) -> dict[str, Source]:
    """A small table in place of the real one."""
    known = {"kobest/boolq": source("boolq", 2), "kobest/copa": source("copa", 1)}
    for module in (sources, cli):
        monkeypatch.setattr(module, "load_sources", lambda: known)
    return known


def files(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def test_items_pool_and_manifest_are_written(copies, table, tmp_path, capsys):
    out = tmp_path / "out"
    assert main(["data", "--suite", "kobest", "--source", str(copies), "--out", str(out)]) == 0
    suite = out / "test/kobest"
    assert files(out) == {
        "test/kobest/boolq.jsonl",
        "test/kobest/boolq.fewshot.jsonl",
        "test/kobest/copa.jsonl",
        "test/kobest/manifest.json",
        "manifest.json",
    }
    whole = read_json(out / "manifest.json")["outputs"]
    assert whole == {"test/kobest/manifest.json": sha256_file(suite / "manifest.json")}
    assert [row["id"] for row in read_jsonl(suite / "boolq.jsonl")] == [0, 1]
    pool = read_jsonl(suite / "boolq.fewshot.jsonl")
    assert [row["id"] for row in pool] == ["fewshot-0", "fewshot-1"]
    manifest = read_json(suite / "manifest.json")
    assert manifest["outputs"]["copa.jsonl"] == sha256_file(suite / "copa.jsonl")
    about = manifest["extra"]["tasks"]["boolq"]
    assert about["files"]["items"]["sha256"] == sha256_file(copies / "skt/kobest_v1/boolq.tsv")
    assert about["rows"] == {"items": 2, "fewshot": 2}
    assert (about["host"], about["revision"]) == ("local copy", None)
    assert about["licence"] == "CC BY-SA 4.0"
    assert "2 items, 2 fewshot" in capsys.readouterr().out


def test_the_same_files_give_the_same_bytes(copies, table, tmp_path):
    hashes = []
    for name in ("a", "b"):
        build.build(list(table.values()), copies, tmp_path / name)
        folder = tmp_path / name
        hashes.append({path: sha256_file(folder / path) for path in files(folder)})
    assert hashes[0] == hashes[1]


def test_a_task_converted_before_stays_until_it_is_named_again(copies, table, tmp_path):
    out = tmp_path / "out"
    build.build([table["kobest/boolq"]], copies, out)
    before = (out / "test/kobest/boolq.jsonl").read_bytes()
    (copies / "skt/kobest_v1/boolq.tsv").write_text(BOOLQ.replace("글2", "다른 글"))
    build.build([table["kobest/copa"]], copies, out)
    suite = out / "test/kobest"
    assert (suite / "boolq.jsonl").read_bytes() == before
    manifest = read_json(suite / "manifest.json")
    assert set(manifest["extra"]["tasks"]) == {"boolq", "copa"}
    assert manifest["outputs"]["boolq.jsonl"] == sha256_file(suite / "boolq.jsonl")
    build.build([table["kobest/boolq"]], copies, out)
    assert (suite / "boolq.jsonl").read_bytes() != before


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda folder: (folder / "copa.tsv").unlink(), "has no skt/kobest_v1/copa.tsv"),
        (lambda folder: (folder / "copa.tsv").write_text(COPA + COPA[-20:]), "fields where"),
        (lambda folder: (folder / "copa.tsv").write_text(""), "gives 0 rows where 1 are expected"),
        (
            lambda folder: (folder / "copa.tsv").write_text(COPA + "2\t전제\t결과\t가\t나\t1\n"),
            "gives 2 rows where 1 are expected",
        ),
    ],
)
def test_one_bad_task_leaves_everything_as_it_was(copies, table, tmp_path, damage, words):
    out = tmp_path / "out"
    damage(copies / "skt/kobest_v1")
    with pytest.raises(UserError, match=words) as caught:
        build.build(list(table.values()), copies, out)
    assert "\n" not in str(caught.value)
    assert not out.exists()


def test_a_full_disk_leaves_the_old_suite(copies, table, tmp_path, monkeypatch):
    out = tmp_path / "out"
    build.build(list(table.values()), copies, out)
    before = {path: sha256_file(out / path) for path in files(out)}

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(build, "write_jsonl", full)
    with pytest.raises(UserError, match="the disk is full"):
        build.build(list(table.values()), copies, out)
    assert {path: sha256_file(out / path) for path in files(out)} == before


def test_rows_of_one_id_are_told_apart(copies, tmp_path):
    row = {"id": "x/test/0", "instruction": "Was?", "answer": "A"}
    row |= {f"option_{letter}": letter for letter in "abcd"}
    path = tmp_path / "m.jsonl"
    path.write_text(json.dumps(row) + "\n" + json.dumps(row) + "\n")
    mmlu = replace(source("mmlu", None, files={"items": File("m.jsonl")}), suite="okapi_de")
    converted = build.convert(mmlu, lambda role: (path, File("m.jsonl")))
    assert [row["id"] for row in converted.rows["items"]] == ["x/test/0", "x/test/0#1"]


def test_a_pool_that_is_the_items_keeps_their_ids(copies):
    one = source("boolq", 2, files={"items": File("boolq.tsv"), "fewshot": File("boolq.tsv")})
    rows = build.convert_local([one], copies)[0].rows
    assert [row["id"] for row in rows["fewshot"]] == [row["id"] for row in rows["items"]]


def test_wrong_columns_name_the_file(copies, table):
    (copies / "skt/kobest_v1/copa.tsv").write_text("a\tb\n1\t2\n")
    with pytest.raises(UserError, match=r"copa\.tsv, row 1: no column 'sentence'"):
        build.convert_local(list(table.values()), copies)
    mgsm = load_sources()["ja8/mgsm"]
    (copies / "mgsm").mkdir()
    (copies / "mgsm/mgsm_ja.tsv").write_text("only one column\n")
    (copies / "mgsm/exemplars_ja.json").write_text("{}")
    with pytest.raises(UserError, match=r"ja8/mgsm: .*mgsm_ja\.tsv.* expected columns"):
        build.convert_local([mgsm], copies)


@pytest.fixture()
def hub(monkeypatch, copies):
    """A hub that serves the copies and remembers what it was asked for."""
    import huggingface_hub

    asked = []

    def download(repository, name, *, repo_type, revision):
        asked.append((repository, name, repo_type, revision))
        return str(copies / repository / name)

    class Api:
        def dataset_info(self, repository, timeout):
            return type("Info", (), {"sha": "f" * 40})

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    monkeypatch.setattr(huggingface_hub, "HfApi", Api)
    remote._newest.cache_clear()
    yield asked
    remote._newest.cache_clear()


def test_the_hub_is_asked_for_single_files_at_the_pinned_revision(hub, copies, tmp_path):
    shutil.copy(copies / "skt/kobest_v1/copa.tsv", copies / "skt/kobest_v1/copa-train.tsv")
    build.build([source("copa", 1)], None, tmp_path / "out")
    assert hub == [
        ("skt/kobest_v1", "copa.tsv", "dataset", "1" * 40),
        ("skt/kobest_v1", "copa-train.tsv", "dataset", "1" * 40),
    ]
    manifest = read_json(tmp_path / "out/test/kobest/manifest.json")
    about = manifest["extra"]["tasks"]["copa"]
    assert (about["host"], about["revision"]) == ("hub", "1" * 40)


def test_an_open_revision_is_looked_up_once_and_recorded(hub, copies, table, tmp_path, capsys):
    table["kobest/boolq"] = source("boolq", 2, revision=None)
    assert main(["data", "--suite", "kobest/boolq", "--out", str(tmp_path / "out")]) == 0
    assert {revision for *_, revision in hub} == {"f" * 40}
    manifest = read_json(tmp_path / "out/test/kobest/manifest.json")
    assert manifest["extra"]["tasks"]["boolq"]["revision"] == "f" * 40
    assert f"revision {'f' * 40} (not pinned)" in capsys.readouterr().out


def test_files_on_github_come_from_the_pinned_commit(monkeypatch, copies, tmp_path):
    asked = []

    def urlopen(url, timeout):
        asked.append(url)
        return open(copies / "skt/kobest_v1/copa.tsv", "rb")

    monkeypatch.setattr("urllib.request.urlopen", urlopen)
    one = source("copa", 1, host="github", files={"items": File("a/copa.tsv", 1)})
    build.build([one], None, tmp_path / "out")
    assert asked == [f"https://raw.githubusercontent.com/skt/kobest_v1/{'1' * 40}/a/copa.tsv"]


def dumps(copies: Path, rows: int, sha256: str) -> Source:
    """A source of one dump, as it stands in the table, and of its description."""
    write_dumps(copies / "skt/kobest_v1")
    found = {"shop.sql": File("shop.sql", rows), "shop.json": File("shop.json")}
    hashes = {"shop.sql": sha256, "shop.json": hashlib.sha256(DESCRIBED.encode()).hexdigest()}
    one = source("databases", None, files=found, optional=(), sha256=hashes)
    return replace(one, suite="sql_eval", copies_to="databases/sql_eval")


DESCRIBED = json.dumps(DESCRIPTION)
DUMPED = hashlib.sha256(DUMP.encode()).hexdigest()


def test_copied_files_stand_beside_the_suites(copies, tmp_path):
    build.build([dumps(copies, 7, DUMPED)], copies, tmp_path / "out")
    folder = tmp_path / "out/databases/sql_eval"
    assert (folder / "shop.sql").read_text() == DUMP
    assert files(tmp_path / "out") == {
        "databases/sql_eval/shop.json",
        "databases/sql_eval/shop.sql",
        "databases/sql_eval/manifest.json",
        "manifest.json",
    }
    about = read_json(folder / "manifest.json")["extra"]["tasks"]["databases"]
    assert about["rows"] == {"shop.sql": 7}
    assert about["files"]["shop.sql"]["sha256"] == DUMPED
    # A local copy with the hashes of the revision is of that revision.
    assert (about["host"], about["revision"]) == ("local copy", "1" * 40)


def test_a_copied_file_of_another_content_or_count_is_refused(copies, tmp_path):
    for one, words in (
        (dumps(copies, 7, "0" * 64), r"shop\.sql is not shop\.sql of skt/kobest_v1 at 1{40}"),
        (dumps(copies, 8, DUMPED), r"shop\.sql gives 7 rows where 8 are expected"),
    ):
        with pytest.raises(UserError, match=words) as caught:
            build.build([one], copies, tmp_path / "out")
        assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_questions_of_another_content_are_refused(copies):
    one = replace(load_sources()["sql_eval/basic"], local={})
    for file in one.files.values():
        path = copies / one.repository / file.path
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("question,query,db_name,query_category\n" + "a,SELECT 1,b,c\n" * 40)
    with pytest.raises(UserError, match=r"_postgres\.csv of defog-ai/sql-eval at b83"):
        build.convert_local([one], copies)
    stood_in = replace(one, sha256={}, local={})
    assert build.convert_local([stood_in], copies)[0].origin["revision"] is None


def test_without_a_network_one_line_names_the_local_alternative(tmp_path):
    command = [sys.executable, "-m", "evaluation", "data", "--suite", "kobest", "--out", "out"]
    environment = os.environ | {
        "HF_HUB_OFFLINE": "1",
        "HF_HOME": str(tmp_path / "hub"),
        "PYTHONPATH": str(ROOT),
    }
    done = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120
    )
    assert done.returncode != 0
    assert done.stderr.count("\n") == 1
    assert "HF_HUB_OFFLINE is set" in done.stderr
    assert "--source DIR with DIR/kobest/BoolQ/test.tsv" in done.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "--suite is missing"),
        (["--suite", "ja8/mgsm", "--out", __file__], "is no folder; give one"),
        (["--suite", "kobest", "--source", "nowhere"], "--source nowhere: no such folder"),
        (["--suite", "ja"], "did you mean 'ja8'"),
    ],
)
def test_bad_arguments_are_told(arguments, words):
    with pytest.raises(UserError, match=words):
        main(["data", *arguments])


def test_the_list_shows_every_source(capsys):
    assert main(["data", "--list"]) == 0
    shown = capsys.readouterr().out
    for name, one in load_sources().items():
        assert name in shown
        assert one.licence in shown
