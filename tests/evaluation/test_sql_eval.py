"""SQL-Eval on SQLite: databases from dumps, judging, hostile answers, the real gold queries."""

from __future__ import annotations

import datetime
import hashlib
import sqlite3
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from common.errors import UserError
from evaluation.definitions import bind, load_definition
from evaluation.sql import agreement, databases, sqlite
from evaluation.sql.sql_eval import SqlEval, SqlEvalJudge, SqliteEngine
from evaluation.suites import select
from tests.evaluation.sql_attacks import SQLITE
from tests.evaluation.sql_toy import NAMES, item, real_folder, real_rows, write_dumps

NOW = datetime.datetime(2024, 3, 31, 13, 45, 10)  # a Sunday


@pytest.fixture(scope="module")
def dumps(tmp_path_factory) -> Path:
    return write_dumps(tmp_path_factory.mktemp("dumps"))


@pytest.fixture(scope="module")
def engine(dumps):
    small = sqlite.Limits(steps=1_000_000, seconds=5.0, statement=20_000, depth=200, compound=50)
    engine = SqliteEngine(dumps, small)
    yield engine
    engine.close()


def test_dates_are_computed_and_types_kept(dumps, tmp_path):
    files = databases.build_sqlite(dumps, tmp_path, NOW)
    with sqlite3.connect(files["shop"]) as connection:
        items = connection.execute("SELECT * FROM items").fetchall()
        buyers = connection.execute('SELECT id, "full name", month, stamp FROM buyers').fetchall()
    connection.close()
    loaded = "2024-03-31 13:45:10"
    assert items == [
        (1, "pen", "office", 1.5, 1, "2024-01-31", loaded),
        # A month before 31 March is the last day of February.
        (2, "ink; blue", "office", 12.0, 1, "2024-02-29", loaded),
        # Monday of the week is the 25th; a week earlier, a day later.
        (3, "cup", "kitchen", None, 1, "2024-03-19", loaded),
        (4, "pan", "kitchen", 12.0, 0, "2024-02-01", "2024-03-31 13:30:10"),
        (5, "it's", None, -3.0, 1, "2024-02-01", "2024-02-03 00:00:00"),
    ]
    seconds = (NOW - datetime.datetime(1970, 1, 1)).total_seconds()
    assert buyers == [(1, "Ann", "December", int(seconds) * 1000), (2, "Bo", None, 2022)]
    assert isinstance(items[1][3], float)  # a whole price still divides as a decimal


@pytest.mark.parametrize(
    "start,count,unit,expected",
    [
        ("2024-03-31", -1, "MONTH", "2024-02-29"),
        ("2023-03-31", -1, "MONTH", "2023-02-28"),
        ("2024-01-15", -13, "MONTH", "2022-12-15"),
        ("2024-12-31", 2, "MONTH", "2025-02-28"),
        ("2024-02-29", -1, "YEAR", "2023-02-28"),
        ("2024-03-01", -1, "DAY", "2024-02-29"),
        ("2024-03-01", 2, "WEEK", "2024-03-15"),
    ],
)
def test_intervals_end_as_in_postgres(start, count, unit, expected):
    moved = databases._shift(datetime.date.fromisoformat(start), count, unit)
    assert moved.date().isoformat() == expected


def test_an_unreadable_dump_is_told_in_one_line(tmp_path):
    with pytest.raises(UserError, match="no databases"):
        databases.dumps(tmp_path)
    bad = tmp_path / "bad.sql"
    for text in (
        "INSERT INTO nowhere VALUES (1);",
        "CREATE TABLE t (a int); DELETE FROM t;",
        "CREATE TABLE t (a date); INSERT INTO t VALUES (AGE(NOW()));",
        "CREATE TABLE t (a date); INSERT INTO t VALUES ('soon');",
        "CREATE TABLE (((",
    ):
        bad.write_text(text)
        with pytest.raises(UserError, match=r"bad\.sql: not a readable dump") as error:
            databases.read_dump(bad, NOW)
        assert "\n" not in str(error.value)


@pytest.mark.parametrize("fidelity", ["published", "corrected"])
@pytest.mark.parametrize(
    "answer,correct,exact",
    [
        (NAMES[0] + ";", True, True),
        ("SELECT name, price FROM items", True, False),
        ("SELECT price FROM items", False, False),
        ("SELECT id FROM items", True, True),  # the second alternative
        ("SELECT name FROM items WHERE name <> 'pen'", False, False),
    ],
)
def test_judging(engine, fidelity, answer, correct, exact):
    row = item(f"{NAMES[0]}; SELECT id FROM items;")
    verdict = SqlEvalJudge(engine, fidelity).judge(answer, row)
    assert (verdict.correct, verdict.exact) == (correct, exact)
    assert verdict.outcome == ("correct" if correct else "wrong")


def judge_both(engine, answer, row):
    return [SqlEvalJudge(engine, f).judge(answer, row) for f in ("published", "corrected")]


def test_the_faults_in_judging(engine):
    empty = judge_both(engine, "SELECT 1 WHERE 0", item("SELECT COUNT(*) FROM items"))
    assert [verdict.correct for verdict in empty] == [True, False]

    literal = "SELECT id FROM items WHERE name = 'ink; blue'"
    answered = judge_both(engine, literal, item("SELECT 2"))
    assert [verdict.correct for verdict in answered] == [False, True]
    assert answered[0].outcome.startswith("failed: unrecognized token")
    in_gold = judge_both(engine, "SELECT 2", item(literal))
    assert [verdict.correct for verdict in in_gold] == [False, True]
    assert in_gold[0].outcome.startswith("failed: gold query: ")

    braces = item("SELECT {name}, {kind, id} FROM items")
    grouped = judge_both(engine, "SELECT name, kind FROM items", braces)
    assert [verdict.correct for verdict in grouped] == [False, True]

    down = judge_both(
        engine,
        "SELECT name FROM items ORDER BY name DESC",
        item("SELECT name FROM items ORDER BY name", "order_by"),
    )
    assert [verdict.correct for verdict in down] == [True, False]

    twice = item("SELECT id FROM items")
    named = judge_both(engine, "SELECT name AS n, id AS n FROM items", twice)
    assert [verdict.correct for verdict in named] == [False, True]
    assert named[0].outcome.startswith("failed: comparison: ")


def test_a_gold_query_that_fails_stops_a_corrected_run(engine):
    with pytest.raises(UserError, match="item q: gold query 'SELECT nme' failed"):
        SqlEvalJudge(engine, "corrected").judge("SELECT 1", item("SELECT nme"))
    with pytest.raises(UserError, match="no database named 'none'"):
        SqlEvalJudge(engine, "corrected").judge("SELECT 1", item("SELECT 1") | {"db_name": "none"})


def test_answers_without_a_statement_or_with_too_much_are_wrong(engine):
    row = item(NAMES[0])
    for answer, outcome in (
        ("", "no statement"),
        ("```", "no statement"),
        ("SELECT nme FROM items", "failed: no such column: nme"),
        ("SELECT 1 FROM items a, items b, items c, items d, items e", "stopped: more than 1000"),
    ):
        for verdict in judge_both(engine, answer, row):
            assert not verdict.correct
            assert verdict.outcome.startswith(outcome)
    wide = "SELECT " + ", ".join(["*"] * 20) + " FROM items a, items b, items c, items d"
    assert judge_both(engine, wide, row)[1].outcome == "stopped: more than 50000 values"


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.mark.parametrize("attack", SQLITE.values(), ids=SQLITE)
def test_a_hostile_answer_is_wrong_and_changes_nothing(engine, tmp_path, monkeypatch, attack):
    monkeypatch.chdir(tmp_path)
    file = engine.files["shop"]
    before = digest(file)
    for fidelity in ("published", "corrected"):
        judge = SqlEvalJudge(engine, fidelity)
        start = time.monotonic()
        verdict = judge.judge(attack, item(NAMES[0]))
        assert time.monotonic() - start < 10
        assert not verdict.correct
        assert verdict.outcome.startswith(("failed: ", "stopped: "))
        assert digest(file) == before
        assert list(tmp_path.iterdir()) == []
        assert [path.name for path in file.parent.iterdir()] == [file.name]
        assert judge.judge(NAMES[0], item(NAMES[0])).exact  # the run goes on


SECOND_STATEMENTS = {
    "delete": "SELECT name FROM items; DELETE FROM items",
    "hidden in a comment": "SELECT name FROM items /* ; */; DROP TABLE items --",
    "behind a quote": "SELECT name FROM items WHERE name <> ''''; DROP TABLE items --'",
}


@pytest.mark.parametrize("answer", SECOND_STATEMENTS.values(), ids=SECOND_STATEMENTS)
def test_a_second_statement_is_never_run(engine, answer):
    before = digest(engine.files["shop"])
    for verdict in judge_both(engine, answer, item(NAMES[0])):
        assert "DELETE" not in verdict.statement
        assert "DROP" not in verdict.statement
    with pytest.raises(Exception, match="one statement at a time"):
        engine.execute("shop", answer)
    assert digest(engine.files["shop"]) == before


def test_databases_are_built_anew_on_another_day(engine, monkeypatch):
    assert not engine.refresh()
    tomorrow = databases.utc_now() + datetime.timedelta(days=1)
    monkeypatch.setattr(databases, "utc_now", lambda: tomorrow)
    assert engine.refresh()
    row = item("SELECT CAST(julianday(changed) AS INT) FROM items WHERE id = 4")
    shown = engine.execute("shop", row["query"]).rows
    monkeypatch.undo()
    assert engine.refresh()
    assert shown[0][0] - engine.execute("shop", row["query"]).rows[0][0] in (0, 1, 2)


def test_the_suites_functions_serve_the_harness(dumps, tmp_path):
    (tmp_path / "databases").mkdir()
    (tmp_path / "databases/sql_eval").symlink_to(dumps)
    resources = {}
    row = item("SELECT {id, name} FROM items", category="ratio")
    for fidelity, until in (("published", [";", "```"]), ("corrected", [])):
        (task,) = select(["sql_eval/basic"], fidelity=fidelity)
        context = SimpleNamespace(
            task=task, data=tmp_path, engine="sqlite", postgres=None, resources=resources
        )
        definition = bind(load_definition(task), context=context)
        assert definition["generation_kwargs"]["until"] == until
        assert definition["doc_to_text"](row).endswith("```sql\n")
        assert definition["doc_to_target"](row) == row["sqlite"]["query"]
        assert definition["process_results"](row, ["SELECT id FROM items"]) == {
            "correct": 1.0,
            "exact": 1.0,
            "category": "ratio",
            "database": "shop",
            "engine": "sqlite",
            "outcome": "correct",
            "statement": "SELECT id FROM items",
        }
    assert (task.metric, task.how, task.bos) == ("correct", "joint", True)
    (opened,) = resources.values()
    folder = opened.engine.files["shop"].parent
    opened.close()
    assert not folder.exists()


def test_an_unknown_engine_and_missing_data_are_told(dumps, tmp_path):
    with pytest.raises(UserError, match="no SQL engine named 'duckdb'"):
        SqlEval(dumps, "duckdb")
    with pytest.raises(UserError, match="no databases"):
        SqlEval(tmp_path)


@pytest.fixture(scope="module")
def real():
    engine = SqliteEngine(real_folder() / "databases")
    yield engine
    engine.close()


def test_real_databases_have_all_tables_and_rows(real):
    tables = [
        table
        for dump in sorted((real_folder() / "databases").glob("*.sql"))
        for table in databases.read_dump(dump, NOW)
    ]
    assert (len(real.files), len(tables)) == (11, 110)
    assert sum(len(table.rows) for table in tables) == 1166


@pytest.mark.parametrize("name,questions,queries", [("classic", 210, 351), ("basic", 40, 40)])
@pytest.mark.parametrize("fidelity", ["published", "corrected"])
def test_real_gold_queries_are_right_against_themselves(real, name, questions, queries, fidelity):
    check = agreement.check_gold(real, real_rows(name), fidelity)
    assert (check.questions, check.queries) == (questions, queries)
    assert check.failures == []
    assert check.empty == 0


@pytest.mark.parametrize("name,empty,one", [("classic", 77, 6), ("basic", 3, 0)])
def test_how_many_real_items_an_empty_answer_passes(real, name, empty, one):
    """Counted independently with the published harness itself."""
    rows = real_rows(name)
    published, corrected = (SqlEvalJudge(real, f) for f in ("published", "corrected"))
    nothing = "SELECT 1 WHERE false"
    assert sum(corrected.judge(nothing, row).correct for row in rows) == 0
    # Rows relative to today may move a few.
    assert abs(sum(published.judge(nothing, row).exact for row in rows) - empty) <= 3
    assert abs(sum(published.judge("SELECT 1", row).correct for row in rows) - one) <= 3
