"""SQL answers: extraction, comparison, and hostile queries."""

from __future__ import annotations

import hashlib
import time
from pathlib import Path

import pytest

from common.errors import UserError
from evaluation.sql import sqlite
from evaluation.sql.bottle import Judge
from evaluation.sql.engines import Refused
from evaluation.sql.extraction import after_cue


@pytest.mark.parametrize(
    "text,statement",
    [
        (" SELECT name FROM pets; DROP TABLE pets", "SELECT name FROM pets"),
        ("SQL: SELECT 1 SQL: SELECT 2 ;", "SELECT 2"),
        ("SELECT 'a;b' ; SELECT 2", "SELECT 'a;b'"),
        ("SELECT 'it''s;' ; x", "SELECT 'it''s;'"),
        ('SELECT ";" FROM t -- a; b', 'SELECT ";" FROM t -- a; b'),
        ("SELECT /* ; */ 1;", "SELECT /* ; */ 1"),
        (" ;", ""),
        ("", ""),
    ],
)
def test_extract(text, statement):
    assert after_cue(text) == statement


@pytest.mark.parametrize(
    "answer,gold,correct",
    [
        ("SELECT name FROM pets", "SELECT name FROM pets", True),
        ("SELECT name AS n FROM pets ORDER BY name DESC", "SELECT name FROM pets", True),
        # The order counts only where the gold query asks for one.
        ("SELECT name FROM pets", "SELECT name FROM pets ORDER BY name", False),
        (
            "SELECT name FROM pets ORDER BY age DESC, name",
            "SELECT name FROM pets ORDER\nBY -age, name",
            False,  # NULL comes last in the one and first in the other
        ),
        (
            "SELECT name FROM pets WHERE kind='cat' ORDER BY name",
            "SELECT name FROM pets WHERE kind='cat' ORDER BY name",
            True,
        ),
        ("SELECT COUNT(*) FROM pets", "SELECT 4", True),
        ("SELECT 4.0", "SELECT 4", True),
        ("SELECT '4'", "SELECT 4", False),
        ("SELECT kind FROM pets", "SELECT DISTINCT kind FROM pets", False),  # cat twice
        ("SELECT name, kind FROM pets", "SELECT name FROM pets", False),
        ("SELECT kind, name FROM pets", "SELECT name, kind FROM pets", False),
        ("SELECT 1 WHERE 0", "SELECT 1", False),  # an empty result is not anything
        ("SELECT 1 WHERE 0", "SELECT name FROM pets WHERE age > 90", True),
        ("SELECT age FROM pets WHERE age IS NULL", "SELECT NULL", True),
        ("SELECT 0.1 + 0.2", "SELECT 0.3", True),
        ("SELECT 0.3001", "SELECT 0.3", False),
        ("SELECT AVG(weight) FROM pets", "SELECT SUM(weight) / COUNT(weight) FROM pets", True),
    ],
)
def test_comparison(database, answer, gold, correct):
    verdict = Judge(database.parent).judge(answer, gold, database.name)
    assert verdict.correct == correct
    assert verdict.outcome == ("correct" if correct else "wrong")


ATTACKS = {
    "delete": "DELETE FROM pets",
    "update": "UPDATE pets SET age = 1",
    "insert": "INSERT INTO pets VALUES ('x', 'y', 1, 1)",
    "insert returning": "INSERT INTO pets VALUES ('x', 'y', 1, 1) RETURNING *",
    "replace": "REPLACE INTO pets VALUES ('x', 'y', 1, 1)",
    "drop": "DROP TABLE pets",
    "create": "CREATE TABLE evil (a)",
    "create temp": "CREATE TEMP TABLE evil (a)",
    "create view": "CREATE TEMP VIEW evil AS SELECT 1",
    "trigger": "CREATE TEMP TRIGGER t AFTER INSERT ON pets BEGIN SELECT 1; END",
    "alter": "ALTER TABLE pets ADD COLUMN evil",
    "with delete": "WITH a AS (SELECT 1) DELETE FROM pets",
    "attach": "ATTACH 'evil.sqlite' AS evil",
    "attach memory": "ATTACH ':memory:' AS evil",
    "detach": "DETACH main",
    "vacuum": "VACUUM",
    "vacuum into": "VACUUM INTO 'evil.sqlite'",
    "reindex": "REINDEX",
    "analyze": "ANALYZE",
    "pragma write": "PRAGMA user_version = 7",
    "pragma read": "PRAGMA database_list",
    "pragma in a comment": "/* SELECT */ PRAGMA writable_schema = ON",
    "pragma function": "SELECT * FROM pragma_database_list",
    "schema": "UPDATE sqlite_master SET sql = ''",
    "load_extension": "SELECT load_extension('evil.so')",
    "load_extension quoted": "SELECT \"load_extension\"('evil.so')",
    "fts3_tokenizer": "SELECT fts3_tokenizer('simple', x'00')",
    "virtual table": "CREATE VIRTUAL TABLE evil USING fts5(a)",
    "readfile": "SELECT readfile('/etc/passwd')",
    "writefile": "SELECT writefile('evil', 'x')",
    "edit": "SELECT edit('x', 'sh')",
    "begin": "BEGIN EXCLUSIVE",
    "savepoint": "SAVEPOINT a",
    "two statements": "SELECT 1; DELETE FROM pets",
    "comment trick": "SELECT 1 /* ' */; DELETE FROM pets --'",
    "endless recursion": "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) "
    "SELECT COUNT(*) FROM n",
    "endless recursion of rows": "WITH RECURSIVE n(i) AS (SELECT 1 UNION SELECT i + 1 FROM n) "
    "SELECT i FROM n",
    "recursion of strings": "WITH RECURSIVE n(s) AS (SELECT 'x' UNION ALL SELECT s || s FROM n) "
    "SELECT MAX(LENGTH(s)) FROM n",
    "cross join": "SELECT COUNT(*) FROM pets, pets a, pets b, pets c, pets d, pets e, pets f, "
    "pets g, pets h, pets i, pets j, pets k, pets l, pets m, pets n",
    "cross join sorted": "SELECT a.name FROM pets a, pets b, pets c, pets d, pets e, pets f, "
    "pets g, pets h, pets i, pets j, pets k, pets l ORDER BY a.name || l.name",
    "rows": "SELECT 1 FROM pets a, pets b, pets c, pets d, pets e, pets f",
    "huge blob": "SELECT zeroblob(1000000000)",
    "huge replace": "SELECT replace(hex(zeroblob(40000)), '0', hex(zeroblob(40000)))",
    "quadratic": "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT "
    "SUM(instr(hex(zeroblob(49000)), hex(zeroblob(24000)) || '1')) FROM n",
    "pattern": "SELECT hex(zeroblob(49000)) LIKE '%0%0%0%0%0%0%0%0%0%0%0%0%0%0%0%1' UNION ALL "
    "SELECT * FROM no_table",
    "deep": "SELECT " + "(" * 5000 + "1" + ")" * 5000,
    "long": "SELECT 1" + " + 1" * 100_000,
    "many columns": "SELECT " + ",".join("1" * 9_000),
    "null character": "SELECT 1\0; DROP TABLE pets",
    "lone surrogate": "SELECT '\udc80'",
    "invalid text": "SELECT CAST(x'ff' AS TEXT)",
    "not SQL": "猫は空",
    "unfinished": "SELECT 'abc",
    "random": "SELECT random()",
}


@pytest.mark.parametrize("attack", ATTACKS.values(), ids=ATTACKS)
def test_hostile_queries_are_refused_or_stopped(database, tmp_path, monkeypatch, attack):
    monkeypatch.chdir(tmp_path)
    before = hashlib.sha256(database.read_bytes()).hexdigest()
    start = time.monotonic()
    with pytest.raises(Refused):
        sqlite.execute(database, attack)
    assert time.monotonic() - start < sqlite.Limits().seconds + 2
    assert hashlib.sha256(database.read_bytes()).hexdigest() == before
    assert list(tmp_path.iterdir()) == []
    assert [path.name for path in database.parent.iterdir()] == [database.name]
    # The next query is judged as if nothing had happened.
    assert sqlite.execute(database, "SELECT COUNT(*) FROM pets").rows == [(4,)]


def test_the_clock_stops_what_the_step_count_would_let_pass(database):
    endless = ATTACKS["endless recursion"]
    start = time.monotonic()
    with pytest.raises(Refused, match="stopped"):
        sqlite.execute(database, endless, sqlite.Limits(steps=10**15, seconds=0.2))
    assert time.monotonic() - start < 1


def test_the_step_limit_does_not_depend_on_the_clock(database):
    count = (
        "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n LIMIT {}) "
        "SELECT COUNT(*) FROM n"
    )
    assert sqlite.execute(database, count.format(1000), sqlite.Limits(steps=100_000)).rows == [
        (1000,)
    ]
    with pytest.raises(Refused, match="too much work"):
        sqlite.execute(database, count.format(100_000), sqlite.Limits(steps=100_000))


def test_a_bad_answer_is_wrong_and_says_why(database):
    judge = Judge(database.parent)
    for answer, outcome in (
        ("", "no statement"),
        ("SELECT nme FROM pets", "failed: no such column: nme"),
        ("DELETE FROM pets", "failed: not authorized"),
        (ATTACKS["rows"], "stopped: more than 1000 rows"),
        (ATTACKS["cross join"], "stopped: too much work"),
    ):
        verdict = judge.judge(answer, "SELECT name FROM pets", database.name)
        assert (verdict.correct, verdict.outcome) == (False, outcome)


def test_faulty_data_is_the_users_to_mend(database):
    judge = Judge(database.parent)
    with pytest.raises(UserError, match="no such database"):
        judge.judge("SELECT 1", "SELECT 1", "none.sqlite")
    with pytest.raises(UserError, match="no such database"):
        judge.judge("SELECT 1", "SELECT 1", f"../{database.parent.name}/{database.name}")
    with pytest.raises(UserError, match="gold query 'SELECT nme' failed"):
        judge.judge("SELECT 1", "SELECT nme", database.name)


def test_paths_with_odd_characters_open(database, tmp_path):
    odd = tmp_path / "a ?mode=rw#b%20.sqlite"
    odd.write_bytes(database.read_bytes())
    assert sqlite.execute(Path(odd), "SELECT COUNT(*) FROM pets").rows == [(4,)]
