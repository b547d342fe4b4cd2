"""Rows of the eight Japanese tasks."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from common.errors import UserError
from common.readers import read_plain_tsv, read_table
from evaluation.data.converters import per_file

CONTEXTS = 5
_JNLI_LABELS = ("entailment", "contradiction", "neutral")
_MARC_LABELS = ("positive", "negative")
_NUMBER = re.compile(r"-?[0-9][0-9,]*")


def _integer(text: str) -> int:
    """Read an integer written with or without thousands separators."""
    return int(text.replace(",", ""))


def _last_integer(text: str) -> int:
    return _integer(_NUMBER.findall(text)[-1].rstrip(","))


def mgsm(path: Path) -> Iterator[dict[str, Any]]:
    """Convert MGSM: a table without header, the exemplars, or the hub's Parquet."""
    if path.suffix == ".tsv":
        for number, (question, answer) in enumerate(read_plain_tsv(path)):
            answered = {"answer": "", "answer_number": _integer(answer)}
            yield {"id": number, "question": question} | answered
        return
    rows = read_table(path)
    if path.suffix == ".json":
        rows = [{"question": row["q"], "answer": row["a"]} for row in rows.values()]
    for number, row in enumerate(rows):
        answer = row["answer"] or ""
        known = row.get("answer_number")
        yield {
            "id": number,
            "question": row["question"],
            "answer": answer,
            "answer_number": _last_integer(answer) if known is None else int(known),
        }


def _substituted(row: list[str], number: int) -> dict[str, Any]:
    """Rebuild a pair of sentences by putting each candidate in the pronoun's place."""
    tokens, (_, (start, stop), _), candidates = (json.loads(field) for field in row[4:7])
    sentences = [
        "".join([*tokens[:start], candidate[0], *tokens[stop:]]) for candidate in candidates
    ]
    return {
        "id": number,
        "sentence1": sentences[0],
        "sentence2": sentences[1],
        "gold": [candidate[3] for candidate in candidates].index(True),
    }


def xwinograd_ja(path: Path) -> Iterator[dict[str, Any]]:
    """Convert XWinograd: the hub's pairs, or the multilingual table with candidates."""
    if path.suffix == ".tsv":
        for number, row in enumerate(read_plain_tsv(path)):
            yield _substituted(row, number)
        return
    for number, row in enumerate(read_table(path)):
        pair = {key: row[key] for key in ("sentence1", "sentence2")}
        yield {"id": number} | pair | {"gold": int(row["answer"]) - 1}


def xlsum_ja(path: Path) -> Iterator[dict[str, Any]]:
    """Convert XL-Sum (Japanese, filtered)."""
    for number, row in enumerate(read_table(path)):
        yield {"id": row.get("id") or number, "text": row["text"], "summary": row["summary"]}


def jaqket_v2(path: Path) -> Iterator[dict[str, Any]]:
    """Convert JAQKET 2: the first five retrieved texts; no row without the answer in them."""
    for row in read_table(path):
        contexts = row["ctxs"][:CONTEXTS]
        if any(context["has_answer"] for context in contexts):
            yield {
                "id": row["qid"],
                "question": row["question"],
                "contexts": [context["text"] for context in contexts],
                "answers": list(row["answers"]),
            }


def _label(value: Any, names: tuple[str, ...], path: Path) -> str:
    """Read a label given as a name or as a number."""
    name = names[value] if isinstance(value, int) and 0 <= value < len(names) else value
    if name not in names:
        raise UserError(
            f"{path}: label {value!r} is none of {', '.join(names)}; this is another data set: "
            "correct the file"
        )
    return name


def marc_ja(path: Path) -> Iterator[dict[str, Any]]:
    """Convert MARC-ja; label 0 is positive, 1 negative."""
    for number, row in enumerate(read_table(path)):
        label = _MARC_LABELS.index(_label(row["label"], _MARC_LABELS, path))
        yield {"id": number, "sentence": row["sentence"], "label": label}


def jnli(path: Path) -> Iterator[dict[str, Any]]:
    """Convert JNLI; labels become their English names."""
    for row in read_table(path):
        yield {
            "id": row["sentence_pair_id"],
            "premise": row["sentence1"],
            "hypothesis": row["sentence2"],
            "label": _label(row["label"], _JNLI_LABELS, path),
        }


def jcommonsenseqa(path: Path) -> Iterator[dict[str, Any]]:
    """Convert JCommonsenseQA."""
    for row in read_table(path):
        yield {
            "id": row["q_id"],
            "question": row["question"],
            "choices": [row[f"choice{number}"] for number in range(5)],
            "gold": row["label"],
        }


def _nested(articles: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    for article in articles:
        for paragraph in article["paragraphs"]:
            about = {"title": article["title"], "context": paragraph["context"]}
            for question in paragraph["qas"]:
                yield about | question


def jsquad(path: Path) -> Iterator[dict[str, Any]]:
    """Convert JSQuAD: nested as SQuAD, or the hub's flat table."""
    table = read_table(path)
    for row in _nested(table["data"]) if isinstance(table, dict) else table:
        answers = row["answers"]
        if isinstance(answers, dict):
            texts = list(answers["text"])
        else:
            texts = [answer["text"] for answer in answers]
        same = {key: row[key] for key in ("id", "title", "context", "question")}
        yield same | {"answers": texts}


CONVERTERS = {
    function.__name__: per_file(function)
    for function in (mgsm, xwinograd_ja, xlsum_ja, jaqket_v2, marc_ja, jnli, jcommonsenseqa, jsquad)
}
