"""SQL-Eval's prompt, from a question and the description of its database.

The text must be the published one to the letter, its faults included: the system's turn is not
ended, and no token begins the text (the backend puts the beginning-of-text token before it).
A chat template must not be put around it.

Source: SQL-Eval's prompts/prompt.md, https://github.com/defog-ai/sql-eval, commit b833324.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import sqlglot

from common.errors import UserError
from common.files import read_json

_PROMPT = """\
<|start_header_id|>system<|end_header_id|>

Follow instructions to the letter, and answer questions without making any additional assumptions.\
<|start_header_id|>user<|end_header_id|>

Generate a {dialect} query to answer this question: `{question}`
{instructions}
DDL statements:
{schema}

Generate a valid {dialect} query that best answers the question `{question}`.\
<|eot_id|><|start_header_id|>assistant<|end_header_id|>

I will reflect on the user's request before answering the question.

I was asked to generate a SQL query for this question: `{question}`

{reflection}
With this in mind, here is the {dialect} query that best answers the question while only using \
appropriate tables and columns from the DDL statements:
```sql
"""
_HEADER = "\nFollow the instructions below to generate the query:"
_REFLECTION = "\nAdditionally, I was asked to follow the instructions below to generate the query:"


def _ddl(tables: dict[str, list[dict[str, str]]]) -> str:
    """Write CREATE TABLE statements whose comments are the columns' descriptions."""
    text = ""
    for table, columns in tables.items():
        lines = []
        for number, column in enumerate(columns, 1):
            name = column["column_name"]
            name = f'"{name}"' if " " in name else name
            comma = "," if number < len(columns) else ""
            about = column.get("column_description", "").replace("\n", " ")
            about = f" --{about}" if about else ""
            lines.append(f"  {name} {column['data_type']}{comma}{about}\n")
        text += f"CREATE TABLE {table} (\n{''.join(lines)});\n"
    return text


def _to_sqlite(ddl: str, schemas: list[str]) -> str:
    """Rewrite PostgreSQL's statements for SQLite, which has no schemas."""
    plain = ddl.replace("UNIQUE", "").replace(" PRIMARY KEY", "")
    text = "\n".join(sqlglot.transpile(plain, read="postgres", write="sqlite", pretty=True))
    for schema in schemas:
        text = text.replace(f"CREATE TABLE {schema}.", "CREATE TABLE ")
        text = text.replace(f"CREATE SCHEMA IF NOT EXISTS {schema}", "")
    pieces = re.split(r"(/\*.*?\*/)", text)
    quoted = (
        piece
        if piece.startswith("/*")
        else re.sub(r'(?<!")\b(transaction|order)\b(?!")', _backtick, piece, flags=re.IGNORECASE)
        for piece in pieces
    )
    text = "".join(quoted).replace(")\nCREATE", ");\nCREATE")
    return text.replace("SERIAL", "INTEGER PRIMARY KEY") + ";"


def _backtick(word: re.Match[str]) -> str:
    return f"`{word.group().lower()}`"


def schema_text(description: dict[str, Any], dialect: str) -> str:
    """Write the statements that show a model a database.

    Args:
        description: The database's JSON description, with `table_metadata`.
        dialect: sqlite or postgres.
    """
    ddl = _ddl(description["table_metadata"])
    schemas = sorted(
        {
            table.partition(".")[0]
            for table in re.findall(r"CREATE TABLE ([a-zA-Z_][a-zA-Z0-9_\.]*) \(", ddl)
            if "." in table
        }
    )
    for schema in schemas:
        ddl = f"CREATE SCHEMA IF NOT EXISTS {schema};\n{ddl}"
    return ddl if dialect == "postgres" else _to_sqlite(ddl, schemas)


def build(question: str, instructions: str, schema: str, dialect: str) -> str:
    """Fill the prompt, which ends inside an open fence.

    Args:
        question: The question.
        instructions: The question's own instructions, or "".
        schema: The statements of `schema_text`.
        dialect: sqlite or postgres, as the prompt names it.
    """
    if instructions:
        wrapped = instructions.replace(". ", ".\n")
        instructions = f"{_HEADER}\n{wrapped}\n"
    return _PROMPT.format(
        dialect=dialect,
        question=question,
        instructions=instructions,
        schema=schema,
        reflection=instructions.replace(_HEADER, _REFLECTION) + "\n",
    )


class Prompts:
    """Builds prompts; reads each database's description `folder/<database>.json` once."""

    def __init__(self, folder: Path, dialect: str) -> None:
        self._folder = folder
        self._dialect = dialect
        self._schemas: dict[str, str] = {}

    def __call__(self, database: str, question: str, instructions: str) -> str:
        """Build one prompt; `instructions` may be "".

        Raises:
            UserError: The database's description is missing or is not one.
        """
        if database not in self._schemas:
            path = self._folder / f"{database}.json"
            description = read_json(path)
            if "table_metadata" not in description:
                raise UserError(f"{path}: no 'table_metadata'; convert the data again")
            self._schemas[database] = schema_text(description, self._dialect)
        return build(question, instructions, self._schemas[database], self._dialect)
