"""The functions that SQL may call on SQLite, and what a single call may cost."""

from __future__ import annotations

import sqlite3

import pytest

from evaluation.sql import functions, sqlite
from evaluation.sql.bottle import Judge
from evaluation.sql.engines import UNREADABLE, Refused


@pytest.mark.parametrize(
    "call",
    [
        *("instr('abcabc', 'ca')", "instr('abc', '')", "instr(NULL, 'a')", "instr(x'0102', x'02')"),
        *("instr(1234, 23)", "replace('aXbX', 'X', 'yz')", "replace('a', '', 'b')"),
        *("replace(NULL, 1, 2)", "trim('xyaxy', 'yx')", "ltrim('xxa', 'x')", "rtrim('a..', '.')"),
        *("trim('猫a猫', '猫')", "'Abc' LIKE 'a%'", "'50%' LIKE '50!%' ESCAPE '!'", "'Ä' LIKE 'ä'"),
        *("NULL LIKE 'a'", "12 LIKE '1_'", "like('a%', 'abc')", "'abc' GLOB 'a[b-c]*'"),
        *("'Abc' NOT LIKE 'b%'", "printf('%5.2f|%-4d|%s', 1.5, 7, NULL)", "format('%04d', 42)"),
        *(
            "printf('%')",
            "printf(NULL)",
            "printf()",
            "typeof(printf('%d', 3))",
            "printf(x'2564', 3)",
        ),
    ],
)
def test_a_replaced_function_gives_what_sqlite_gives(database, call):
    bare = sqlite3.connect(":memory:")
    assert (
        sqlite.execute(database, f"SELECT {call}").rows == bare.execute(f"SELECT {call}").fetchall()
    )


@pytest.mark.parametrize(
    "call",
    [
        *("instr(a.s, a.s || 'b')", "replace(a.s, a.s || 'b', '')", "a.s LIKE '%' || a.t || 'b'"),
        *("trim(a.s, a.t)", "ltrim(a.s, a.t)", "rtrim(a.s, a.t)", "a.s GLOB '*' || a.t || 'b'"),
        *("a.s LIKE a.t ESCAPE '!'", "printf('%4000d', 1)"),
    ],
)
def test_the_work_of_one_call_is_counted_before_it_is_done(database, call):
    """No jump of SQLite's program follows, so its own count would let the call pass."""
    query = f"WITH a(s, t) AS (SELECT '{'a' * 300}', '{'a' * 90}') SELECT {call} FROM a"
    assert len(sqlite.execute(database, query).rows) == 1
    few = sqlite.Limits(steps=200)
    assert len(sqlite.execute(database, "SELECT 1 FROM pets", few).rows) == 4
    with pytest.raises(Refused, match="stopped: too much work"):
        sqlite.execute(database, query, few)


def test_many_calls_in_one_row_are_counted_together(database):
    call = f"instr('{'a' * 50}', '{'b' * 50}')"  # 2,500 pairs and the call itself: 150 steps
    limits = sqlite.Limits(steps=3_000)
    assert len(sqlite.execute(database, "SELECT " + ",".join([call] * 19), limits).rows) == 1
    with pytest.raises(Refused, match="stopped: too much work"):
        sqlite.execute(database, "SELECT " + ",".join([call] * 21), limits)


@pytest.mark.parametrize("name", ["printf", "format"])
def test_a_format_with_an_extreme_width_is_refused(database, name):
    small = sqlite.Limits(bytes=100)
    for form in ("%101d", "%.101f", "%-101s", "%1.101e", "%*d", "%.*f"):
        with pytest.raises(Refused, match=rf"failed: {name}\(\) with a width over 100"):
            sqlite.execute(database, f"SELECT {name}('{form}', 1, 1)", small)
    assert sqlite.execute(database, f"SELECT {name}('%90d', 1)", small).rows == [(f"{1:90d}",)]


def test_a_refused_function_says_so(database):
    for names in functions.REFUSED.values():
        for name in names:
            code = functions.authorize(sqlite3.SQLITE_FUNCTION, None, name.upper())
            assert code == sqlite3.SQLITE_DENY, name
    with pytest.raises(Refused, match="not authorized to use function: randomblob"):
        sqlite.execute(database, "SELECT randomblob(1)")


def test_a_function_in_no_list_is_refused():
    """SQLite grows new functions, whose work nobody has looked at."""
    for name in ("a_function_of_next_year", "", None):
        code = functions.authorize(sqlite3.SQLITE_FUNCTION, None, name)
        assert code == sqlite3.SQLITE_DENY


def test_every_function_is_in_one_list():
    lists = [functions.PLAIN, *functions.REFUSED.values()]
    assert len(set().union(*lists)) == sum(map(len, lists))
    replaced = {name for name, _ in functions.METERED}
    assert not replaced & set().union(*functions.REFUSED.values())


@pytest.mark.parametrize("table", ["sqlite_stmt", "dbstat", "DBSTAT", "sqlite_dbpage"])
def test_tables_about_the_process_or_its_file_are_refused(database, table):
    with pytest.raises(Refused, match=r"^failed: "):
        sqlite.execute(database, f"SELECT COUNT(*) FROM {table}")


def test_a_string_or_row_beyond_the_limit_is_refused(database):
    small = sqlite.Limits(bytes=100)
    assert sqlite.execute(database, "SELECT hex(zeroblob(45))", small).rows == [("0" * 90,)]
    with pytest.raises(Refused, match="too big"):
        sqlite.execute(database, "SELECT hex(zeroblob(60))", small)
    with pytest.raises(Refused, match="stopped: a row of more than 100 bytes"):
        sqlite.execute(database, "SELECT hex(zeroblob(30)), hex(zeroblob(30))", small)


@pytest.mark.parametrize("kind", UNREADABLE)
def test_what_sqlites_driver_raises_is_that_querys_failure(database, monkeypatch, kind):
    judge = Judge(database.parent)
    gold = "SELECT COUNT(*) FROM pets"
    assert judge.judge("SELECT 4", gold, database.name).correct

    def fetch(*_):
        raise kind("cannot be read")

    with monkeypatch.context() as patch:
        patch.setattr(sqlite, "_fetch", fetch)
        verdict = judge.judge("SELECT 5 - 1", gold, database.name)
    assert (verdict.correct, verdict.outcome) == (False, "failed: cannot be read")
    assert judge.judge("SELECT 2 + 2", gold, database.name).correct


@pytest.mark.parametrize("value", ["CAST(x'ff' AS TEXT)", "'a' || CAST(x'c3' AS TEXT)"])
def test_text_that_is_not_utf8_is_that_querys_failure(database, value):
    verdict = Judge(database.parent).judge(f"SELECT {value}", "SELECT 1", database.name)
    assert not verdict.correct
    assert verdict.outcome.startswith("failed: ")
    assert "\n" not in verdict.outcome
