"""Counts and labels of the real benchmarks; BOTTLE_DATA names the folder of their copies."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path

import pytest

from evaluation.data.build import convert_local
from evaluation.data.sources import load_sources

FOLDER = os.environ.get("BOTTLE_DATA")
pytestmark = pytest.mark.skipif(
    FOLDER is None, reason="needs real benchmark files: set BOTTLE_DATA to their folder"
)
COUNTS = {
    "ja8/mgsm": {"items": 250, "fewshot": 8},
    "ja8/xwinograd_ja": {"items": 959},
    "ja8/jnli": {"items": 2434, "fewshot": 2508},
    "ja8/jcommonsenseqa": {"items": 1119, "fewshot": 8939},
    "ja8/jsquad": {"items": 4420, "fewshot": 4420},
    "kobest/boolq": {"items": 1404, "fewshot": 3665},
    "kobest/copa": {"items": 1000, "fewshot": 3076},
    "kobest/sentineg": {"items": 397, "fewshot": 3649},
    "sql_eval/classic": {"items": 210},
    "sql_eval/basic": {"items": 40},
}


@pytest.fixture(scope="module")
def real():
    """All tasks of which there are copies, by name."""
    chosen = [load_sources()[name] for name in [*COUNTS, "sql_eval/databases"]]
    return {one.source.name: one for one in convert_local(chosen, Path(FOLDER))}


def rows(real, name: str, role: str = "items") -> list[dict]:
    return real[name].rows[role]


@pytest.mark.parametrize("name", COUNTS)
def test_counts(real, name):
    assert {role: len(found) for role, found in real[name].rows.items()} == COUNTS[name]
    ids = [row["id"] for row in rows(real, name)]
    assert len(set(ids)) == len(ids)


def test_mgsm(real):
    items = rows(real, "ja8/mgsm")
    assert [row["answer_number"] for row in items[:3]] == [18, 3, 70000]
    # The four that the file writes with thousands separators.
    assert {2125, 114200, 276000, 5600} <= {row["answer_number"] for row in items}
    pool = rows(real, "ja8/mgsm", "fewshot")
    assert [row["answer_number"] for row in pool] == [11, 29, 39, 9, 33, 8, 8, 5]
    assert all(row["question"].startswith("問題：") for row in pool)
    assert all(row["answer"].startswith("ステップごとの答え：") for row in pool)


def test_xwinograd(real):
    items = rows(real, "ja8/xwinograd_ja")
    assert items[0] == {
        "id": 0,
        "sentence1": "狙撃兵はテロリストを撃った。狙撃兵は悪漢だったからだ。",
        "sentence2": "狙撃兵はテロリストを撃った。テロリストは悪漢だったからだ。",
        "gold": 1,
    }
    assert all(row["sentence1"] != row["sentence2"] for row in items)
    assert {row["gold"] for row in items} == {0, 1}


def test_jnli_is_version_1_1(real):
    items = rows(real, "ja8/jnli")
    assert Counter(row["label"] for row in items) == {
        "neutral": 1347,
        "contradiction": 734,
        "entailment": 353,
    }
    # By another reader: 29 labels differ in version 1.3, no text does.
    pandas = pytest.importorskip("pandas")
    later = pandas.read_json(Path(FOLDER) / "jglue/jnli-valid-v1.3.json", lines=True)
    assert list(later["sentence1"]) == [row["premise"] for row in items]
    assert list(later["sentence2"]) == [row["hypothesis"] for row in items]
    differing = [a != b["label"] for a, b in zip(later["label"], items, strict=True)]
    assert sum(differing) == 29
    assert "test split" in real["ja8/jnli"].origin["stand_in"]["fewshot"]


def test_jcommonsenseqa(real):
    first = rows(real, "ja8/jcommonsenseqa")[0]
    assert first == {
        "id": 8939,
        "question": "電子機器で使用される最も主要な電子回路基板の事をなんと言う？",
        "choices": ["掲示板", "パソコン", "マザーボード", "ハードディスク", "まな板"],
        "gold": 2,
    }


def test_jsquad(real):
    items = rows(real, "ja8/jsquad")
    assert len({row["title"] for row in items}) == 59
    assert all("[SEP]" in row["context"] for row in items)
    assert Counter(len(row["answers"]) for row in items) == {3: 3998, 2: 422}
    assert items[0]["answers"][:2] == ["株式会社ジェイ・キャスト", "ジェイ・キャスト"]
    assert set(real["ja8/jsquad"].origin["stand_in"]) == {"items", "fewshot"}


def test_kobest_labels(real):
    labels = {
        name: Counter(row["label"] for row in rows(real, f"kobest/{name}"))
        for name in ("boolq", "copa", "sentineg")
    }
    # Counted in the files: 359 FALSE and 340 False, 357 True and 348 TRUE; 517 ones, 483 twos.
    assert labels == {
        "boolq": {0: 699, 1: 705},
        "copa": {0: 517, 1: 483},
        "sentineg": {0: 197, 1: 200},
    }
    quoted = [row for row in rows(real, "kobest/boolq", "fewshot") if row["paragraph"][0] == '"']
    assert quoted
    assert quoted[0]["paragraph"].startswith('"두근두근 내 인생"은 같은 이름의 소설을')
    assert rows(real, "kobest/sentineg")[0]["sentence"] == "택배사 정말 마음에 듬"


def test_sql_questions(real):
    items = rows(real, "sql_eval/classic")
    assert set(Counter(row["query_category"] for row in items).values()) == {35}
    differing = [row["id"] for row in items if row["question"] != row["sqlite"]["question"]]
    assert differing == ["classic-160", "classic-177", "classic-197"]
    databases = real["sql_eval/databases"]
    assert len(databases.copies) == 22
    # As counted in PostgreSQL, which loads the dumps by itself (test_sql_postgres.py).
    assert sum(databases.origin["rows"].values()) == 1166
    for name in ("classic", "basic", "databases"):  # their hashes say so
        one = real[f"sql_eval/{name}"]
        assert one.origin["revision"] == one.source.revision
    assert real["ja8/mgsm"].origin["revision"] is None
    dump = (Path(FOLDER) / "sql_eval/databases/yelp.sql").read_bytes()
    assert real["sql_eval/databases"].copies["yelp.sql"] == dump
