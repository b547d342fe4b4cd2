"""The rehearsal's benchmark files: the converters read them, and no real run takes them."""

import json
from pathlib import Path

import pytest
import yaml

from common.errors import UserError
from common.files import read_json, read_jsonl
from evaluation.cli import main as evaluation
from evaluation.data.sources import load_sources, select_sources, with_stand_ins
from evaluation.suites import load_suites
from paper.rehearsal.benchmarks import TABLE, write_benchmarks

TASKS = [name for name, source in load_sources().items() if not source.copies_to]


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("benchmarks")
    assert write_benchmarks(TASKS, None, folder) == []
    return folder


def data(folder: Path, out: Path, *more: str, suites: str = "ja8,kobest,okapi_de,sql_eval") -> int:
    source = ["--suite", suites, "--source", str(folder), "--out", str(out)]
    return evaluation(["data", *source, *more])


def test_hand_made_rows_have_what_every_task_reads_and_are_marked(made, tmp_path, capsys):
    assert data(made, tmp_path, "--stand-ins", str(made / TABLE)) == 0
    assert "items is a stand-in: hand-made rows" in capsys.readouterr().out
    for name in TASKS:
        suite, _, task = name.partition("/")
        about = load_suites()[suite].tasks[task]
        definition = yaml.load(about.definition.read_text(), _Loader)
        rows = read_jsonl(tmp_path / "test" / suite / f"{task}.jsonl")
        assert all(row.keys() >= set(definition["metadata"]["columns"]) for row in rows)
        pool = tmp_path / "test" / suite / f"{task}.fewshot.jsonl"
        if about.shots:
            assert len(read_jsonl(pool)) >= about.shots
        manifest = read_json(tmp_path / "test" / suite / "manifest.json")
        marked = manifest["extra"]["tasks"][task]["stand_in"]
        assert set(marked) == set(load_sources()[name].files)
        assert all("hand-made" in why for why in marked.values())
    databases = read_json(tmp_path / "databases" / "sql_eval" / "manifest.json")
    assert databases["extra"]["tasks"]["databases"]["stand_in"]


class _Loader(yaml.SafeLoader):
    """Reads task definitions, whose functions do not matter here."""


_Loader.add_constructor("!function", lambda loader, node: node.value)


def test_answers_to_the_hand_made_questions_are_right(made, tmp_path):
    from evaluation.sql.sql_eval import SqlEval

    data(made, tmp_path, "--stand-ins", str(made / TABLE), suites="sql_eval/classic")
    rows = read_jsonl(tmp_path / "test" / "sql_eval" / "classic.jsonl")
    opened = SqlEval(tmp_path / "databases" / "sql_eval", "sqlite")
    try:
        for row in rows:
            assert "CREATE TABLE shop" in opened.prompt(row)
            assert opened.judge(row["sqlite"]["query"], row, "corrected").correct
            # The prices are 3, 12 and 25.
            more = sum(price > int(row["question"].split()[-1][:-1]) for price in (3, 12, 25))
            assert opened.judge(f"SELECT {more};", row, "corrected").correct
            assert not opened.judge(f"SELECT {more + 1};", row, "corrected").correct
    finally:
        opened.close()


def test_a_run_without_the_table_never_finds_them(made, tmp_path):
    with pytest.raises(UserError, match="has no juletxara/mgsm/ja/test"):
        data(made, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    with pytest.raises(UserError, match="--stand-ins names files below --source"):
        evaluation(["data", "--suite", "kobest", "--stand-ins", str(made / TABLE)])


def test_real_rows_win_and_keep_their_counts(made, tmp_path):
    """Beside a file of the benchmark's own name, however short, no stand-in is looked at."""
    real = tmp_path / "copies" / "skt" / "kobest_v1" / "copa"
    real.mkdir(parents=True)
    row = read_jsonl(made / "hand-made" / "kobest" / "copa" / "test.jsonl")[0]
    (real / "test.jsonl").write_text(json.dumps(row))
    out = tmp_path / "out"
    assert write_benchmarks(["kobest/boolq", "kobest/copa"], tmp_path / "copies", out) == [
        "kobest/copa"
    ]
    table = yaml.safe_load((out / TABLE).read_text())
    assert list(table) == ["kobest/boolq"]
    with pytest.raises(UserError, match="gives 1 rows where 1000 are expected"):
        data(
            out,
            tmp_path / "data",
            "--stand-ins",
            str(out / TABLE),
            suites="kobest/boolq,kobest/copa",
        )


def test_questions_and_databases_are_real_together_or_not_at_all(tmp_path):
    folder = tmp_path / "copies" / "sql_eval" / "questions"
    folder.mkdir(parents=True)
    for engine in ("postgres", "sqlite"):
        (folder / f"questions_gen_{engine}.csv").write_text("question\n")
    assert write_benchmarks(["sql_eval/classic"], tmp_path / "copies", tmp_path / "out") == []


@pytest.mark.parametrize(
    ("entries", "words"),
    [
        ({"kobest/cpa": {}}, r"no benchmark 'kobest/cpa' \(did you mean 'kobest/copa'"),
        ({"kobest/copa": {"item": {"path": "x"}}}, r"no files 'item' \(did you mean 'items'"),
        ({"kobest/copa": {"items": {"path": "x"}}}, "does not say what it is"),
        ({"kobest/copa": {"items": {"pth": "x"}}}, "not a table of stand-ins"),
        (["kobest/copa"], "not a table of stand-ins"),
    ],
)
def test_a_wrong_table_is_told(entries, words, tmp_path):
    path = tmp_path / "table.yaml"
    path.write_text(yaml.safe_dump(entries))
    with pytest.raises(UserError, match=words) as caught:
        with_stand_ins(select_sources(["kobest"]), path)
    assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match="no such table"):
        with_stand_ins([], tmp_path / "none.yaml")
