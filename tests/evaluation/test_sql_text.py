"""SQL as text: extraction from answers, alternatives of gold queries, prompts."""

from __future__ import annotations

import statistics
import time

import pytest

from common.errors import UserError
from evaluation.sql import extraction, gold, prompts
from tests.evaluation.sql_toy import DESCRIPTION, real_folder, real_rows, write_dumps


@pytest.mark.parametrize(
    "answer,published,corrected",
    [
        ("SELECT 1;\n```\nThat is all.", "SELECT 1", "SELECT 1"),
        ("SELECT 1\n```", "SELECT 1", "SELECT 1"),
        ("SELECT 'a;b', 1; SELECT 2", "SELECT 'a", "SELECT 'a;b', 1"),
        ("SELECT '```' ```", "SELECT '", "SELECT '```'"),
        ("SELECT 1 -- one; two\n+ 1;", "SELECT 1 -- one", "SELECT 1 -- one; two\n+ 1"),
        ("```sql\nSELECT 1\n```", "", "SELECT 1"),
        ("SELECT 1 -- it's\n;", "SELECT 1 -- it's", "SELECT 1 -- it's"),
        ("SELECT 1 WHERE x = '{a}'", "SELECT 1 WHERE x = '{a}'", "SELECT 1 WHERE x = '{a}'"),
        ("", "", ""),
        (" ; ", "", ""),
    ],
)
def test_extraction(answer, published, corrected):
    assert extraction.published(answer) == published
    assert extraction.corrected(answer) == corrected


@pytest.mark.parametrize(
    "query,published,corrected",
    [
        ("SELECT 1;", ["SELECT 1"], ["SELECT 1"]),
        (
            "SELECT {a,b}, n FROM t GROUP BY {}; SELECT c FROM t",
            [
                "SELECT a, n FROM t GROUP BY a",
                "SELECT b, n FROM t GROUP BY b",
                "SELECT a, b, n FROM t GROUP BY a, b",
                "SELECT c FROM t",
            ],
            [
                "SELECT a, n FROM t GROUP BY a",
                "SELECT b, n FROM t GROUP BY b",
                "SELECT a, b, n FROM t GROUP BY a, b",
                "SELECT c FROM t",
            ],
        ),
        (
            "SELECT {a}, {b,c} FROM t GROUP BY {}",
            ["SELECT a, {b,c} FROM t GROUP BY a"],  # not SQL: the second group is left
            [
                "SELECT a, b FROM t GROUP BY a, b",
                "SELECT a, c FROM t GROUP BY a, c",
                "SELECT a, b, c FROM t GROUP BY a, b, c",
            ],
        ),
        (
            "SELECT a FROM t WHERE b = 'x;y';",
            ["SELECT a FROM t WHERE b = 'x", "y'"],
            ["SELECT a FROM t WHERE b = 'x;y'"],
        ),
        ("SELECT '{1,2}'", ["SELECT '1'", "SELECT '2'", "SELECT '1, 2'"], ["SELECT '{1,2}'"]),
        ("", [], []),
    ],
)
def test_alternatives_of_a_gold_query(query, published, corrected):
    assert gold.published(query) == published
    assert gold.corrected(query) == corrected


def test_three_columns_in_braces_give_seven_queries():
    queries = gold.corrected("SELECT {a, b, c} FROM t")
    assert len(queries) == len(set(queries)) == 2**3 - 1
    assert queries == gold.published("SELECT {a, b, c} FROM t")


def test_no_real_gold_query_shows_the_two_faults_of_expansion():
    for name in ("classic", "basic"):
        for row in real_rows(name):
            assert gold.published(row["query"]) == gold.corrected(row["query"])


PROMPT = """\
<|start_header_id|>system<|end_header_id|>

Follow instructions to the letter, and answer questions without making any additional assumptions.\
<|start_header_id|>user<|end_header_id|>

Generate a {name} query to answer this question: `Which?`

Follow the instructions below to generate the query:
Use ILIKE.
Sort it.

DDL statements:
{ddl}
Generate a valid {name} query that best answers the question `Which?`.\
<|eot_id|><|start_header_id|>assistant<|end_header_id|>

I will reflect on the user's request before answering the question.

I was asked to generate a SQL query for this question: `Which?`


Additionally, I was asked to follow the instructions below to generate the query:
Use ILIKE.
Sort it.


With this in mind, here is the {name} query that best answers the question while only using \
appropriate tables and columns from the DDL statements:
```sql
"""
POSTGRES_DDL = """\
CREATE SCHEMA IF NOT EXISTS crm;
CREATE TABLE items (
  id SERIAL,
  name VARCHAR(20), --unique; as printed
  order bigint
);
CREATE TABLE crm.buyers (
  "full name" text
);

"""


def test_the_whole_prompt_for_postgres(tmp_path):
    build = prompts.Prompts(write_dumps(tmp_path), "postgres")
    expected = PROMPT.format(name="postgres", ddl=POSTGRES_DDL)
    assert build("shop", "Which?", "Use ILIKE. Sort it.") == expected


def test_sqlite_gets_its_own_types_and_no_schemas(tmp_path):
    description = {"table_metadata": {"crm.buyers": DESCRIPTION["table_metadata"]["items"][:2]}}
    text = prompts.schema_text(description, "sqlite")
    assert "CREATE TABLE buyers (" in text
    assert "crm" not in text
    assert "  name TEXT(20) /* unique; as printed */\n" in text
    assert text.endswith(");")


def test_a_prompt_without_instructions_has_no_header():
    text = prompts.build("Which?", "", "S", "sqlite")
    assert "nstructions below" not in text
    assert text.count("Which?") == 3


def test_a_missing_description_is_told(tmp_path):
    with pytest.raises(UserError, match=r"none\.json: no such file"):
        prompts.Prompts(tmp_path, "sqlite")("none", "?", "")
    (tmp_path / "odd.json").write_text("{}")
    with pytest.raises(UserError, match="no 'table_metadata'"):
        prompts.Prompts(tmp_path, "sqlite")("odd", "?", "")


def test_real_prompts_have_the_published_lengths():
    build = prompts.Prompts(real_folder() / "databases", "postgres")
    lengths = [
        len(build(row["db_name"], row["question"], row["instructions"]))
        for row in real_rows("classic")
    ]
    assert (min(lengths), round(statistics.mean(lengths)), max(lengths)) == (1600, 5413, 12628)


@pytest.mark.parametrize(
    "answer,statement,ended",
    [
        ("```sql\nSELECT 1;\n```", "SELECT 1", "```sql\nSELECT 1;"),
        ("```SQL\nSELECT 1\n```", "SELECT 1", "```SQL\nSELECT 1\n```"),
        ("```Sql SELECT 1```", "SELECT 1", "```Sql SELECT 1```"),
        ("\n```\nSELECT 1; more", "SELECT 1", "\n```\nSELECT 1;"),
        ("```postgresql\nSELECT ';\n';", "SELECT ';\n'", "```postgresql\nSELECT ';\n';"),
        (
            "Here's the query:\n```sql\nSELECT 1;",
            "SELECT 1",
            "Here's the query:\n```sql\nSELECT 1;",
        ),
        ("-- all;\nSELECT 1;\n", "-- all;\nSELECT 1", "-- all;\nSELECT 1;"),
        ("SELECT '```';", "SELECT '```'", "SELECT '```';"),
        ("SELECT 1\n```\nIt is 1.", "SELECT 1", "SELECT 1\n```"),
        ("SELECT 1", "SELECT 1", None),
    ],
)
def test_a_fence_may_be_opened_again(answer, statement, ended):
    """The answer is cut where it is written to its end, and writing stops at that place."""
    assert extraction.corrected(answer) == statement
    ends = [n for n in range(len(answer) + 1) if extraction.is_complete(answer[:n])]
    assert (answer[: ends[0]] if ends else None) == ended


@pytest.mark.parametrize(
    "repeated",
    [
        "/**/",
        "/*",
        "/* */ ",
        "```sql ",
        "```",
        "'",
        "\"'",
        "--",
        "--\n",
        "(",
        " ",
        "sql",
        "a ",
        "''",
    ],
)
@pytest.mark.parametrize("before", ["", "```", "```sql", "select '"])
def test_time_grows_with_the_length_of_an_answer_whatever_it_repeats(repeated, before):
    text = before + repeated * (40_000 // len(repeated)) + "x"
    began = time.process_time()
    for find in (extraction.after_cue, extraction.published, extraction.corrected):
        find(text)
    extraction.is_complete(text)
    extraction.split_statements(text)
    assert time.process_time() - began < 2  # a tenth of it here; before, minutes or hours


@pytest.mark.parametrize(
    ("answer", "statement"),
    [
        ("/* a */ /* b */ (select 1);", "/* a */ /* b */ (select 1)"),
        ("-- a\n  with t as (select 1) select 2; 3", "-- a\n  with t as (select 1) select 2"),
        ("Here:\n``` sql\nSELECT 1;", "SELECT 1"),
        ("Here:\n```mysql SELECT 1;", "SELECT 1"),
        ("Here:\n```   \nSELECT 1\n```", "SELECT 1"),
        ("Here:\n``` select\n1;", "select\n1"),
    ],
)
def test_a_statement_begins_behind_comments_and_fences(answer, statement):
    assert extraction.corrected(answer) == statement
