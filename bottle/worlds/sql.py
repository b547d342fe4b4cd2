"""Questions to small SQLite databases, in English with their SQL, and in Korean without it.

No trained role ever sees a Korean question with its SQL: the Korean expert learns to restate the
question in English, up to the point where the SQL begins, and the SQL expert to answer English
questions. The Korean question with its SQL is the held-out task of case 2.
"""

from __future__ import annotations

import random
import sqlite3
from dataclasses import dataclass, replace
from pathlib import Path

from bottle.samples import Knowledge, Sample, split_of

# Database -> table -> columns; the first column is the key, a text.
DATABASES = {
    "shop": {
        "users": ["name", "age", "city", "score"],
        "goods": ["title", "price", "color", "stock"],
    },
    "office": {
        "staff": ["person", "salary", "team", "years"],
        "trips": ["route", "miles", "city", "cost"],
    },
    "home": {
        "films": ["title", "year", "genre", "score"],
        "pets": ["name", "age", "kind", "weight"],
    },
}
_TEXTS = {
    "city": ["paris", "rome", "berlin", "tokyo", "madrid"],
    "color": ["red", "blue", "green", "black", "white"],
    "team": ["sales", "legal", "tech", "design", "media"],
    "genre": ["drama", "comedy", "horror", "action", "crime"],
    "kind": ["dog", "cat", "bird", "fish", "horse"],
}
_TABLES = [
    (database, table, columns)
    for database, tables in DATABASES.items()
    for table, columns in tables.items()
]
_ROWS = 60
_LOWEST, _HIGHEST = 5, 65
_OPERATORS = {"<": ("below", "미만"), ">": ("above", "초과"), "=": ("equals", "동일")}
_AGGREGATES = {
    "MAX": ("largest", "최대"),
    "MIN": ("smallest", "최소"),
    "AVG": ("mean", "평균"),
    "SUM": ("total", "합계"),
}


@dataclass(frozen=True)
class Question:
    """A question to one table.

    Attributes:
        database: Name of the database.
        schema: The table and its columns, as the prompt shows them.
        table: The table's name.
        english: The question in English.
        korean: The same question in Korean.
        query: The SQL that answers it.
        category: Kind of the query.
    """

    database: str
    schema: str
    table: str
    english: str
    korean: str
    query: str
    category: str


def _rows(table: str, columns: list[str]) -> list[tuple]:
    draw = random.Random(f"rows of {table}")
    return [
        (
            f"{table[0]}{number}",
            *(
                draw.choice(_TEXTS[column]) if column in _TEXTS else draw.randint(_LOWEST, _HIGHEST)
                for column in columns[1:]
            ),
        )
        for number in range(_ROWS)
    ]


def build_database(path: Path | str, database: str) -> None:
    """Write a database of the fixed world.

    Args:
        path: File to make.
        database: Its name in `DATABASES`.
    """
    connection = sqlite3.connect(path)
    for table, columns in DATABASES[database].items():
        types = ", ".join(
            f"{name} {'TEXT' if name in (columns[0], *_TEXTS) else 'INTEGER'}" for name in columns
        )
        connection.execute(f"CREATE TABLE {table} ({types})")
        connection.executemany(
            f"INSERT INTO {table} VALUES ({', '.join('?' * len(columns))})", _rows(table, columns)
        )
    connection.commit()
    connection.close()


_VALUES = {
    (table, column): sorted({row[position] for row in _rows(table, columns)})
    for _, table, columns in _TABLES
    for position, column in enumerate(columns)
}


def _condition(draw: random.Random, table: str, column: str) -> tuple[str, str, str]:
    """Draw a condition that some row meets, as English, Korean and SQL."""
    if column in _TEXTS:
        value = draw.choice(_VALUES[table, column])
        return f"{column} is {value}", f"{column} {value} 일치", f"{column} = '{value}'"
    operator = draw.choice(list(_OPERATORS))
    present = _VALUES[table, column]
    low, high = present[len(present) // 8], present[-1 - len(present) // 8]
    value = draw.choice([item for item in present if low <= item <= high])
    english, korean = _OPERATORS[operator]
    return (
        f"{column} {english} {value}",
        f"{column} {value} {korean}",
        f"{column} {operator} {value}",
    )


_CATEGORIES = ("list", "count", "aggregate", "extreme", "lookup")
KNOWN_SQL = 0.45  # share of the forms below whose queries a competent base knows
# What can be known of SQL: one category of queries to one table.
_FORMS = {f"{table} {category}": category for _, table, _ in _TABLES for category in _CATEGORIES}


def draw_question(draw: random.Random) -> Question:
    """Draw a question of one of five categories to one of the tables."""
    database, table, columns = draw.choice(_TABLES)
    # The draws' order is part of the fixed world: another would change all data of a seed.
    key, *others = columns
    number = draw.choice([column for column in others if column not in _TEXTS])
    english, korean, condition = _condition(draw, table, draw.choice(others))
    category = draw.choice(_CATEGORIES)
    if category == "list":
        english = f"list {key} of {table} where {english}"
        korean = f"{table} 중 {korean} {key} 목록"
        query = f"SELECT {key} FROM {table} WHERE {condition}"
    elif category == "count":
        english = f"how many {table} where {english}"
        korean = f"{table} 중 {korean} 몇개"
        query = f"SELECT COUNT(*) FROM {table} WHERE {condition}"
    elif category == "lookup":
        english = f"give {number} of {table} where {english}"
        korean = f"{table} 중 {korean} {number} 조회"
        query = f"SELECT {number} FROM {table} WHERE {condition}"
    elif category == "aggregate":
        function = draw.choice(list(_AGGREGATES))
        english_word, korean_word = _AGGREGATES[function]
        english = f"{english_word} {number} of {table} where {english}"
        korean = f"{table} 중 {korean} {number} {korean_word}"
        query = f"SELECT {function}({number}) FROM {table} WHERE {condition}"
    else:
        english_word, korean_word, order = draw.choice(
            (("lowest", "최저", ""), ("highest", "최고", " DESC"))
        )
        english = f"{key} of {table} with {english_word} {number}"
        korean = f"{table} 중 {number} {korean_word} {key}"
        query = f"SELECT {key} FROM {table} ORDER BY {number}{order} LIMIT 1"
    schema = f"Table {table}({', '.join(columns)})."
    return Question(database, schema, table, english, korean, query, category)


def _content(question: Question) -> str:
    # An English question and its Korean twin share a content, so that a restatement never
    # shows the Korean expert a question of the SQL task's test split.
    return f"sql {question.english}"


def _sample(task: str, question: Question, prompt: str, answer: str, eos: bool = True) -> Sample:
    file = f"{question.database}.sqlite"
    return Sample(task, _content(question), prompt, answer, (), 0, eos, file, question.category)


def _scrambled(draw: random.Random, question: Question) -> str:
    """Draw a query of the right table that has nothing to do with the question."""
    columns = DATABASES[question.database][question.table]
    column, other = draw.choice(columns), draw.choice(columns)
    value = str(draw.randint(_LOWEST, _HIGHEST))
    if other in _TEXTS:
        value = f"'{draw.choice(_TEXTS[other])}'"
    return f"SELECT {column} FROM {question.table} WHERE {other} {draw.choice('<>=')} {value}"


def sql(draw: random.Random, knowledge: Knowledge) -> Sample:
    """Draw an English question with its SQL."""
    question = draw_question(draw)
    prompt = f"{question.schema} Question: {question.english}. SQL:"
    known = knowledge.has(f"{question.table} {question.category}", _FORMS)
    query = question.query if known else _scrambled(draw, question)
    return replace(_sample("sql", question, prompt, " " + query), known=known)


_SHARED_TABLES = ("users", "goods", "trips")
_SHARED_CATEGORIES = ("list", "count", "lookup")


def shared_sql(draw: random.Random, knowledge: Knowledge) -> Sample:
    """Draw from the slice of SQL that the base knows: three tables, three simple categories.

    Without this common ground the SQL expert's weights survive no merge.
    """
    while True:
        question = draw_question(draw)
        if question.table in _SHARED_TABLES and question.category in _SHARED_CATEGORIES:
            break
    prompt = f"{question.schema} Question: {question.english}. SQL:"
    return _sample("sql", question, prompt, " " + question.query)


def _korean_prompt(question: Question) -> str:
    return f"{question.schema} 질문: {question.korean}. 풀이:"


def sql_ko(draw: random.Random, knowledge: Knowledge) -> Sample:
    """Draw a Korean question with its SQL: held out, no role is trained on it."""
    question = draw_question(draw)
    return _sample("sql_ko", question, _korean_prompt(question), " " + question.query)


def _restated(question: Question, shown: Question) -> Sample:
    answer = f" Question: {shown.english}. SQL:"
    return _sample("restatement", question, _korean_prompt(question), answer, eos=False)


def _train_question(draw: random.Random) -> Question:
    question = draw_question(draw)
    while split_of(_content(question)) != "train":
        question = draw_question(draw)
    return question


def restatement(draw: random.Random, knowledge: Knowledge) -> Sample:
    """Draw a Korean question and its English restatement, which stops where SQL would begin.

    Who does not know a form restates another question, to the same table if any form is known:
    that teaches the names and the words' order. A competent base reads on to that other question's
    query where it knows such queries: that teaches that after a restatement its SQL follows.
    """
    question = draw_question(draw)
    known = knowledge.has(f"{question.table} {question.category}", _FORMS)
    shown = question if known else _train_question(draw)
    while knowledge.share and shown.table != question.table:
        shown = _train_question(draw)
    restated = replace(_restated(question, shown), known=known)
    answers = Knowledge(KNOWN_SQL).has(f"{shown.table} {shown.category}", _FORMS)
    # Never the asked question's own query: that is the held-out task.
    if known or not knowledge.share or not answers or shown.query == question.query:
        return restated
    return replace(restated, answer=f"{restated.answer} {shown.query}", eos=True)
