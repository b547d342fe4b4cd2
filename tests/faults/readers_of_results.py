"""Readers of answers, scores and results: a valid input to damage, and how to call them."""

from __future__ import annotations

import csv
import gzip
import io
import json
from decimal import Decimal
from pathlib import Path
from typing import Any

from hypothesis import strategies as st

from tests.faults.inputs import contents, documents, json_files, texts
from tests.faults.readers import Reader, each_of, file_with

SQL = ["SELECT ", "select", " FROM ", "items", " WHERE ", "a", "*", ", ", "(", ")", " = ", "1",
       "'", '"',
       ";", "--", "\n", "/*", "*/", "```", "```sql\n", "SQL:", "WITH ", " ORDER BY ", " DESC",
       " LIMIT ",
       " ", "{", "}", ",", "GROUP BY {}", "count(", "''", "\\", "\x00", "é", "`"]  # fmt: skip


def extraction(top: Path) -> Reader:
    from evaluation.sql import extraction, gold

    functions = [extraction.after_cue, extraction.published, extraction.corrected]
    functions += [
        extraction.is_complete,
        extraction.split_statements,
        gold.published,
        gold.corrected,
    ]

    def long(text: str) -> None:
        # Time must grow with the length, whatever a model repeats: as long as an answer may be.
        for function in functions[:5] if len(text) % 16 == 7 else ():
            function((text[:60] * 700)[:40_000])

    few = texts(SQL, 15).filter(lambda text: text.count(",") < 8)
    return Reader(few, each_of(*functions, long))


VALUE = st.one_of(
    st.none(), st.booleans(), st.integers(-3, 3), st.integers(-(2**70), 2**70), st.floats(),
    st.sampled_from(["", "a", "b", "1", b"a", Decimal("1.0"), Decimal("NaN"), Decimal("1e400")]),
)  # fmt: skip
QUERIES = ["SELECT a, b FROM t", "SELECT a, b FROM t ORDER BY a", "SELECT a, b FROM t ORDER BY 9",
           "SELECT * FROM t ORDER BY lower(b) DESC, a", "(((", "SELECT a ORDER BY"]  # fmt: skip


def comparison(top: Path) -> Reader:
    from evaluation.sql import comparison_corrected
    from evaluation.sql.bottle import same_result
    from evaluation.sql.engines import Compared, Result

    def result(width: int) -> st.SearchStrategy[Result]:
        rows = st.lists(st.tuples(*[VALUE] * width), max_size=5)
        return rows.map(lambda rows: Result(("a", "b", "a")[:width], rows))

    results = st.integers(1, 3).flatmap(result)

    def read(drawn: tuple) -> None:
        gold, answer, query = drawn
        comparison_corrected.compare(Compared(gold, answer, "order_by", "in order?", query, query))
        same_result(answer.rows, gold.rows, ordered=True)
        same_result(answer.rows, gold.rows, ordered=False)

    return Reader(st.tuples(results, results, st.sampled_from(QUERIES)), read)


RECORDS = [
    {"task": "s/t", "id": "1", "score": 1.0, "answer": "a", "gold": "b", "values": {"acc": 1.0}},
    {
        "task": "s/t",
        "id": "2",
        "score": 0.0,
        "answer": 1,
        "gold": 0,
        "loglikelihoods": [-1.0, -2.0],
    },
]


def _lines(rows: Any) -> bytes:
    rows = rows if isinstance(rows, list) else [rows]
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def answers(top: Path) -> Reader:
    from evaluation.items import read_records
    from report.answers import _read_all
    from report.reading import Reader as Results
    from studies.dam.load import read_items

    def table(path: Path) -> None:
        _read_all(Results(top), {"ja": path}, ["ja"])

    packed = gzip.compress(_lines(RECORDS), mtime=0)
    ways = [documents(RECORDS).map(_lines), contents(_lines(RECORDS))]
    inputs = st.one_of(
        st.one_of(ways).map(lambda text: gzip.compress(text, 1, mtime=0)), contents(packed)
    )
    return Reader(
        inputs, file_with(top / "a/x.items.jsonl.gz", each_of(read_records, read_items, table))
    )


WORDS = ["1", "9", "２", "-", ".", ",", "万", "千", "億", "答え", " ", "\n", "約", "円",
         "％", "〜", "年",
         "1,234", "1e9", "∞", "½", "三", "=", "m2", "^", "{"]  # fmt: skip


def answered_texts(top: Path) -> Reader:
    from evaluation import japanese
    from evaluation.tasks.ja8 import functions as ja8

    calls = [ja8.last_number, ja8.last_written_number, japanese.with_numbers,
             lambda text: ja8.extraction({"answers": ["1万", "年"]}, [text])]  # fmt: skip

    def long(text: str) -> None:
        for call in calls[:3] if len(text) % 16 == 7 else ():
            call((text[:40] * 200)[:8_000])

    return Reader(texts(WORDS, 25), each_of(*calls, long))


ENTRY = {"value": 0.5, "stderr": 0.1, "items": 4, "chance": 0.25, "metric": "acc",
         "metrics": {"acc": {"value": 0.5, "stderr": 0.1}}}  # fmt: skip
SCORES = {"model": "ja", "split": "test", "seed": 1, "backend": "hf", "weights": "0" * 64,
          "tasks": {"s/a": ENTRY, "s/b": ENTRY}, "suites": {}}  # fmt: skip


def scores(top: Path) -> Reader:
    from evaluation import gate
    from report.load import read_scores

    def compared(path: Path) -> None:
        found = gate._read(path)
        gate._compare(found, found, ["s/a", "s/b"], 2.0)

    return Reader(json_files(SCORES), file_with(top / "s/ja.json", each_of(read_scores, compared)))


def results(top: Path) -> Reader:
    """A results folder: gate, smoke check, scores and manifests of a row, one of them damaged."""
    from report.load import load_case

    judged = {"learned": True, "base": 0.1, "expert": 0.5}
    files = {
        "case1/gate.json": {"experts": {"ja": {"tasks": {"s/a": judged}}}, "failed": {}},
        "case1/smoke.json": {"model": {"not_finite": 0, "perplexity": 2.0}, "parents": {}},
        "case1/scores/test/ja.json": SCORES,
        "case1/models/ja/manifest.json": {
            "kind": "expert",
            "parameters": {"set": {}},
            "outputs": {},
        },
        "case1/models/ja/cost.json": {"counted": {"tokens": 3}},
    }
    config = {"name": "x", "seed": 1, "methods": {}, "cases": {"case1": {
        "table": "table1", "title": "T", "columns": [{"label": "A", "tasks": ["s/a", "s/b"]}],
        "experts": {"ja": {"label": "J", "domain": ["s/a"]}}}}}  # fmt: skip
    folder = top / "results"
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(json.dumps(content))

    def read(drawn: tuple[str, bytes]) -> object:
        name, content = drawn
        (folder / name).write_bytes(content)
        try:
            return load_case(config, folder, "case1")
        finally:
            (folder / name).write_text(json.dumps(files[name]))

    ways = [st.tuples(st.just(name), json_files(content)) for name, content in files.items()]
    return Reader(st.one_of(ways), read)


def manifest(top: Path) -> Reader:
    from common.manifest import accept, check_recorded

    (top / "m").mkdir()
    (top / "m/a.json").write_text("{}")
    about = {"kind": "expert", "parameters": {}, "inputs": {}, "outputs": {"a.json": "0" * 64}}

    def read(path: Path) -> None:
        each_of(check_recorded, accept)(path.parent)

    return Reader(json_files(about), file_with(top / "m/manifest.json", read))


def stored(top: Path) -> Reader:
    from evaluation.store import Store

    key = {"weights": "0" * 64, "task": "s/t", "seed": 1}
    store = Store(top / "store")
    store.put(key, {"items": RECORDS, "entry": ENTRY})
    path = store.path(key)
    right = path.read_bytes()
    rows = [json.loads(line) for line in gzip.decompress(right).split(b"\n") if line]
    packed = documents(rows).map(lambda rows: gzip.compress(_lines(rows), 1, mtime=0))
    return Reader(st.one_of(packed, contents(right)), file_with(path, lambda _: store.get(key)))


def data_rows(top: Path) -> Reader:
    from common.readers import read_table

    rows = [{"prompt": "a, b", "choices": ["c", "d"], "gold": 0}, {"prompt": "e\nf", "gold": 1}]
    table = io.StringIO()
    csv.writer(table).writerows([["prompt", "gold"], ["a, b", "0"], ['say "c"', "1"]])
    kinds = {
        "rows.jsonl": _lines(rows), "rows.json": json.dumps(rows).encode(),
        "rows.csv": table.getvalue().encode(), "rows.tsv": b"prompt\tgold\na\t0\nb\t1\n",
    }  # fmt: skip

    def read(drawn: tuple[str, bytes]) -> object:
        path = top / drawn[0]
        path.write_bytes(drawn[1])
        return read_table(path)

    return Reader(
        st.one_of([st.tuples(st.just(n), contents(text)) for n, text in kinds.items()]), read
    )
