"""Hand-made rows with the columns of the calibration data sets."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from paper.rehearsal.files import write_rows

_ROWS = 24  # of each data set
_NAMES = ("山田", "佐藤", "鈴木", "田中")
_CITIES = ("Berlin", "Hamburg", "Köln", "Leipzig")


def _ichikara(i: int) -> dict[str, str]:
    name = _NAMES[i % 4]
    question = f"{name}さんの家には猫が{i}匹います。何匹ですか。"
    return {"ID": f"{i}", "text": question, "output": f"{i}匹です。"}


def _orca(i: int) -> dict[str, str]:
    return {
        "question": f"Anna has {i} apples and buys 3 more. How many has she?",
        "answer": f"She has {i} + 3 = {i + 3} apples.",
    }


def _metamath(i: int) -> dict[str, str]:
    return {
        "type": "GSM_Rephrased",
        "query": f"What is {i} times 2?",
        "original_question": f"What is {i} + {i}?",
        "response": f"{i} times 2 is {2 * i}. The answer is: {2 * i}",
    }


def _wikipedia(i: int) -> dict[str, str]:
    return {"id": f"{i}", "title": f"역 {i}", "text": f"서울의 역 {i}번은 {1900 + i}년에 열렸다."}


def _wikisql(i: int) -> dict[str, str]:
    return {
        "question": f"How many players scored more than {i}?",
        "create_table_statement": "CREATE TABLE players (name text, points integer)",
        "sql_query": f"SELECT COUNT(*) FROM players WHERE points > {i}",
    }


def _german(i: int) -> dict[str, str]:
    return {
        "instruction": "Nenne die Stadt im Satz.",
        "input": f"Der Zug {i} fährt nach {_CITIES[i % 4]}." if i % 3 else "",
        "output": f"{_CITIES[i % 4]}." if i % 3 else "Es gibt keinen Satz.",
    }


# Repository, file in it, and what makes a row: as paper/hub.tsv and paper.yaml expect them.
_SETS: dict[str, tuple[str, Callable[[int], dict[str, str]]]] = {
    "p1atdev/ichikara-instruction": ("20231115-1/train.jsonl", _ichikara),
    "microsoft/orca-math-word-problems-200k": ("data/train-00000-of-00001.parquet", _orca),
    "meta-math/MetaMathQA": ("MetaMathQA-395K.json", _metamath),
    "lcw99/wikipedia-korean-20240501": ("data/train-00000-of-00001.parquet", _wikipedia),
    "kaxap/pg-wikiSQL-sql-instructions-80k": ("data/train-00000-of-00001.parquet", _wikisql),
    "Fischerboot/another-german-alpaca-dataset": ("train.json", _german),
}


def rows_of(repository: str) -> list[dict[str, str]]:
    """Make a data set's rows."""
    return [_SETS[repository][1](i) for i in range(_ROWS)]


def text() -> list[str]:
    """Return all texts, for the tokenizers."""
    return [" ".join(row.values()) for name in _SETS for row in rows_of(name)]


def write_datasets(folder: Path) -> None:
    """Write every data set in the format of its file, to FOLDER/OWNER/NAME."""
    for name, (file, _) in _SETS.items():
        write_rows(folder / name / file, rows_of(name))
