"""Comparison of results, by hand: every fault of the published rule beside its mending."""

from __future__ import annotations

import datetime
import time
from decimal import Decimal

import pytest

from evaluation.sql import comparison_corrected, comparison_published
from evaluation.sql.engines import Compared, Match, Result

EXACT, SUBSET, WRONG = Match(True, True), Match(False, True), Match(False, False)
PUBLISHED, CORRECTED = comparison_published.compare, comparison_corrected.compare
DAY = datetime.date(2024, 1, 1)


def table(names: str, *rows: tuple) -> Result:
    return Result(tuple(names.split()), list(rows))


def pair(gold, answer, category="group_by", question="?", gold_query="", answer_query=""):
    return Compared(gold, answer, category, question, gold_query, answer_query)


AGREED = {
    "the same": (table("a", (1,)), table("a", (1,)), EXACT),
    "another value": (table("a", (1,)), table("a", (2,)), WRONG),
    "other names": (table("a b", (1, "x")), table("c d", (1, "x")), EXACT),
    "other order of rows": (table("a", (1,), (2,)), table("a", (2,), (1,)), EXACT),
    "one row missing": (table("a", (1,), (2,), (3,)), table("a", (1,), (2,)), WRONG),
    "one row more": (table("a", (1,), (2,)), table("a", (1,), (2,), (3,)), WRONG),
    "rows repeated": (table("a", (1,), (2,)), table("a", (2,), (1,), (1,)), EXACT),
    "a column more": (table("a", (1,), (2,)), table("x y", ("u", 2), ("v", 1)), SUBSET),
    "a column missing": (table("a b", (1, 5), (2, 6)), table("a", (1,), (2,)), WRONG),
    "columns paired wrongly": (
        table("a b", (1, "u"), (2, "v")),
        table("a b", (1, "v"), (2, "u")),
        WRONG,
    ),
    "numbers of other types": (
        table("a b", (4, Decimal("1.5"))),
        table("a b", (4.0, 1.5)),
        EXACT,
    ),
    "text is no number": (table("a", ("4",)), table("a", (4,)), WRONG),
    "text": (table("a", ("x",), (None,)), table("a", (None,), ("x",)), EXACT),
    "dates": (table("a", (DAY,)), table("a", (DAY,)), EXACT),
    "both empty": (table("a b"), table("a b"), EXACT),
    "empty gold": (table("a"), table("a", (1,), (2,)), WRONG),
}


@pytest.mark.parametrize("gold,answer,match", AGREED.values(), ids=AGREED)
def test_what_both_rules_say_alike(gold, answer, match):
    assert PUBLISHED(pair(gold, answer)) == match
    assert CORRECTED(pair(gold, answer)) == match


FAULTS = {
    # Broadcasting: NumPy stretches a row or a column of length one, and an empty result to it.
    "empty column for one row": (table("a", (7,)), table("x"), EXACT, WRONG),
    "empty column for a wide row": (table("a b c", (1, 2, 3)), table("x"), EXACT, WRONG),
    "one column for two equal ones": (table("a b", (5, 5)), table("x", (5,)), EXACT, WRONG),
    "one value for a table of it": (table("a b", (5, 5), (5, 5)), table("x", (5,)), EXACT, WRONG),
    "a table of the one value": (table("a", (5,)), table("x y", (5, 5), (5, 5)), EXACT, SUBSET),
    # Tolerance: none in `exact`, so that a last digit makes the difference there.
    "a last digit": (table("a", (0.3,)), table("a", (0.1 + 0.2,)), SUBSET, EXACT),
    "five digits": (table("a", (100000.0,)), table("a", (100000.5,)), SUBSET, EXACT),
    # NULL is filled with a number before the comparison.
    "NULL is -99999": (table("a b", (None, 1)), table("a b", (-99999, 1)), EXACT, WRONG),
    # Columns are paired greedily: the first with the same values is taken for good.
    "columns of the same values": (
        table("a b", (1, 2), (2, 1), (3, 3)),
        table("y z x", (2, 0, 1), (1, 0, 2), (3, 0, 3)),
        # The set of rows {(1,2), (2,1), (3,3)} is its own mirror image: right either way.
        SUBSET,
        SUBSET,
    ),
    "columns of the same values, three rows": (
        table("a b", (1, 2), (2, 3), (3, 1)),
        table("b a z", (2, 1, 0), (3, 2, 0), (1, 3, 0)),
        WRONG,
        SUBSET,
    ),
}


@pytest.mark.parametrize("gold,answer,published,corrected", FAULTS.values(), ids=FAULTS)
def test_a_fault_and_its_mending(gold, answer, published, corrected):
    assert PUBLISHED(pair(gold, answer)) == published
    assert CORRECTED(pair(gold, answer)) == corrected


def test_beyond_the_tolerance_both_say_wrong():
    far = pair(table("a", (1.0,), (2.0,)), table("a", (1.0001,), (2.0,)))
    assert PUBLISHED(far) == CORRECTED(far) == WRONG
    near = pair(table("a", (1.0,), (2.0,)), table("a", (1.000009,), (2.0,)))
    assert (PUBLISHED(near), CORRECTED(near)) == (SUBSET, EXACT)


UP = table("a", (1,), (2,), (3,))
DOWN = table("a", (3,), (2,), (1,))
ORDERED = "SELECT a FROM t ORDER BY a"


def test_published_sorts_again_what_was_to_be_in_order():
    """With `a` named in both queries both are sorted downwards, so a wrong order passes."""
    wrong_order = pair(UP, DOWN, "order_by", "?", ORDERED, "SELECT a FROM t ORDER BY a")
    assert PUBLISHED(wrong_order) == EXACT
    assert CORRECTED(wrong_order) == WRONG
    asked = pair(UP, DOWN, "ratio", "Sort by a.", ORDERED, "SELECT a FROM t ORDER BY t.a DESC")
    assert PUBLISHED(asked) == EXACT
    assert CORRECTED(asked) == WRONG
    # ASC in the one query and nothing in the other: sorted up and down, so a right order fails.
    explicit = pair(UP, UP, "order_by", "?", ORDERED + " ASC", ORDERED)
    assert PUBLISHED(explicit) == EXACT  # saved by the comparison of the raw values
    explicit = pair(
        UP, table("a", (1,), (2,), (3,), (3,)), "order_by", "?", ORDERED + " ASC", ORDERED
    )
    assert PUBLISHED(explicit) == WRONG
    assert CORRECTED(explicit) == EXACT


def test_published_sorts_only_the_results_of_queries_that_order():
    """The gold rows are sorted downwards, and these are in that order by themselves."""
    unsorted = pair(UP, DOWN, "order_by", "?", ORDERED, "SELECT a FROM t")
    assert PUBLISHED(unsorted) == EXACT
    assert CORRECTED(unsorted) == WRONG
    mixed = pair(UP, table("a", (2,), (1,), (3,)), "order_by", "?", ORDERED, "SELECT a FROM t")
    assert PUBLISHED(mixed) == CORRECTED(mixed) == WRONG


def test_order_is_asked_of_the_answer_only_where_question_and_gold_do():
    assert CORRECTED(pair(UP, DOWN, "group_by", "?", ORDERED)) == EXACT
    assert CORRECTED(pair(UP, DOWN, "order_by", "?", "SELECT a FROM t")) == EXACT
    for question in ("Order by a", "sorted by a", "Arrange them", "in the ordering of a"):
        assert CORRECTED(pair(UP, DOWN, "ratio", question, ORDERED)) == WRONG
        assert CORRECTED(pair(UP, UP, "ratio", question, ORDERED)) == EXACT
    for question in ("Which orders are open?", "Which border?"):
        assert CORRECTED(pair(UP, DOWN, "ratio", question, ORDERED)) == EXACT


def test_rows_that_tie_may_change_places():
    gold = table("name n", ("x", 9), ("y", 4), ("z", 4), ("w", 1))
    query = "SELECT name, COUNT(*) AS n FROM t GROUP BY name ORDER BY n DESC"
    swapped = table("name n", ("x", 9), ("z", 4), ("y", 4), ("w", 1))
    wrong = table("name n", ("y", 4), ("x", 9), ("z", 4), ("w", 1))
    assert CORRECTED(pair(gold, swapped, "order_by", "?", query)) == EXACT
    assert CORRECTED(pair(gold, wrong, "order_by", "?", query)) == WRONG
    # With further columns, too.
    wide = table("k name n", *((i, *row) for i, row in enumerate(swapped.rows)))
    assert CORRECTED(pair(gold, wide, "order_by", "?", query)) == SUBSET
    # A key outside the result: no ties are known, the order is binding.
    hidden = "SELECT name, n FROM t ORDER BY age"
    assert CORRECTED(pair(gold, swapped, "order_by", "?", hidden)) == WRONG
    assert CORRECTED(pair(gold, gold, "order_by", "?", hidden)) == EXACT


@pytest.mark.parametrize(
    "query,keys",
    [
        ("SELECT a, b FROM t", None),
        ("SELECT a, b FROM t ORDER BY b", [1]),
        ("SELECT a, b FROM t ORDER BY 1, 2", [0, 1]),
        ("SELECT t.a, t.b AS c FROM t ORDER BY t.b DESC NULLS LAST LIMIT 3", [1]),
        ("SELECT a, COUNT(*) FROM t GROUP BY a ORDER BY COUNT(*)", [1]),
        ("SELECT a, COUNT(*) AS n FROM t GROUP BY a ORDER BY CASE WHEN n IS NULL THEN 1 END", [1]),
        ("SELECT a, b FROM t GROUP BY a ORDER BY SUM(b)", [0, 1]),  # b is not its own sum
        ("SELECT a, b FROM (SELECT a, b FROM t ORDER BY a) u", None),
        ("WITH u AS (SELECT a, b FROM t ORDER BY a) SELECT a, b FROM u ORDER BY b", [1]),
        ("SELECT a, b FROM t UNION SELECT a, b FROM u ORDER BY a", [0]),
        ("SELECT * FROM t ORDER BY a", [0, 1]),
    ],
)
def test_the_columns_that_an_order_by_depends_on(query, keys):
    assert comparison_corrected.order_keys(query, 2, "postgres") == keys


def test_what_pandas_cannot_sort_or_name_raises_in_published_alone():
    """The caller books the exception as wrong, as the published runner does."""
    twice = pair(table("n", (1,), (2,)), table("n n", (2, 0), (1, 0)))
    with pytest.raises(Exception, match="not unique"):
        PUBLISHED(twice)
    assert CORRECTED(twice) == SUBSET
    mixed = pair(table("n", (1,), ("x",)), table("n", ("x",), (1,)))
    with pytest.raises(TypeError):
        PUBLISHED(mixed)
    assert CORRECTED(mixed) == EXACT


def test_text_with_nulls_is_compared_as_published_not_as_pandas_3_would():
    gold = table("a b", ("x", 1), (None, 2))
    assert PUBLISHED(pair(gold, table("a b", (None, 2), ("x", 1)))) == EXACT


def test_a_thousand_equal_columns_do_not_keep_the_rule_busy():
    """Tried in the gold columns' order, the pairings of this answer are a billion."""
    gold = table("a b c d", (1, 1, 1, 7))
    flood = Result(tuple(f"c{number}" for number in range(1000)), [(1,) * 1000])
    start = time.process_time()
    assert CORRECTED(pair(gold, flood)) == WRONG
    assert time.process_time() - start < 5
    answer = Result((*flood.columns, "last"), [(*flood.rows[0], 7)])
    assert CORRECTED(pair(gold, answer)) == SUBSET


def test_the_last_digits_of_a_sum_do_not_pair_rows_wrongly():
    assert 0.1 + 0.2 != 0.3
    gold = table("a b", (0.1 + 0.2, 1), (0.3, 2))
    assert CORRECTED(pair(gold, table("a b", (0.3, 1), (0.1 + 0.2, 2)))) == EXACT
    assert CORRECTED(pair(gold, table("a b", (0.3, 1), (0.1 + 0.2, 3)))) == WRONG


def test_values_without_an_order_or_a_hash_are_compared_by_their_text():
    left = table("a", ([1, 2],), ({"k": 1},))
    assert CORRECTED(pair(left, table("a", ({"k": 1},), ([1, 2],)))) == EXACT
    assert CORRECTED(pair(left, table("a", ({"k": 1},), ([2, 1],)))) == WRONG
    assert CORRECTED(pair(table("a", (2**60,)), table("a", (2**60 + 1,)))) == WRONG
