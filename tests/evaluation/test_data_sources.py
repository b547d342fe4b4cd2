"""The table of sources, and the readers of published formats."""

from __future__ import annotations

import json
import re

import pytest

from common.errors import UserError
from common.readers import read_csv, read_plain_tsv, read_table, read_tsv
from evaluation.data.converters import converter_of
from evaluation.data.sources import find_local, load_sources, select_sources

SUITES = {
    "ja8": 8,
    "kobest": 5,
    "okapi_de": 4,
    "sql_eval": 4,  # three sets of questions and the databases
}


def test_the_table_names_every_task_once_with_licence_and_access():
    sources = load_sources()
    counts = {suite: sum(s.suite == suite for s in sources.values()) for suite in SUITES}
    assert counts == SUITES
    for source in sources.values():
        assert source.licence
        assert source.access in ("open", "gated", "withdrawn")
        assert source.host in ("hub", "github")


def test_revisions_are_whole_commits_or_left_open():
    revisions = [source.revision for source in load_sources().values()]
    assert all(r is None or re.fullmatch(r"[0-9a-f]{40}", r) for r in revisions)
    assert revisions.count(None) == 1  # MGSM's


def test_only_data_files_are_ever_asked_for():
    endings = {
        file.path.rpartition(".")[2]
        for source in load_sources().values()
        for file in source.files.values()
    }
    assert endings == {"parquet", "json", "jsonl", "csv", "sql"}


def test_every_converted_task_has_a_converter():
    for source in load_sources().values():
        if source.copies_to is None:
            assert callable(converter_of(source.suite, source.task))


def test_a_single_task_of_sql_eval_brings_the_databases():
    assert [s.name for s in select_sources(["sql_eval/basic"])] == [
        "sql_eval/basic",
        "sql_eval/databases",
    ]
    assert [s.name for s in select_sources(["kobest/wic"])] == ["kobest/wic"]


@pytest.mark.parametrize(
    ("names", "words"),
    [
        (["kobset"], "did you mean 'kobest'"),
        (["kobest/bolq"], "did you mean 'kobest/boolq'"),
        ([], "no suite was named"),
    ],
)
def test_an_unknown_name_is_told(names, words):
    with pytest.raises(UserError, match=words):
        select_sources(names)


def test_a_copy_of_the_repository_comes_before_the_alternatives(tmp_path):
    source = load_sources()["kobest/boolq"]
    (tmp_path / "kobest/BoolQ").mkdir(parents=True)
    (tmp_path / "kobest/BoolQ/test.tsv").write_text("x")
    assert find_local(source, tmp_path, "items")[0] == tmp_path / "kobest/BoolQ/test.tsv"
    (tmp_path / "skt/kobest_v1/boolq").mkdir(parents=True)
    (tmp_path / "skt/kobest_v1/boolq/test.jsonl").write_text("x")
    found = find_local(source, tmp_path, "items")[0]
    assert found == tmp_path / "skt/kobest_v1/boolq/test.jsonl"
    assert find_local(source, tmp_path, "fewshot") is None  # optional here
    with pytest.raises(UserError, match=r"mkshing/xlsum_ja/data/test\.csv; put the file there"):
        find_local(load_sources()["ja8/xlsum_ja"], tmp_path, "items")


def test_quotes_in_a_plain_table_are_text(tmp_path):
    path = tmp_path / "a.tsv"
    path.write_bytes('ID\tText\r\n1\t"국제시장"은 영화다.\r\n2\t그는 "\r\n'.encode())
    assert read_tsv(path) == [
        {"ID": "1", "Text": '"국제시장"은 영화다.'},
        {"ID": "2", "Text": '그는 "'},
    ]


def test_line_separators_inside_json_lines_are_text(tmp_path):
    path = tmp_path / "a.jsonl"
    rows = [{"text": "a\u2028b\x85c"}, {"text": "d"}]
    path.write_text("".join(json.dumps(r, ensure_ascii=False) + "\n" for r in rows), newline="")
    assert read_table(path) == rows


def test_line_ends_inside_quotes_of_a_csv_are_kept(tmp_path):
    path = tmp_path / "a.csv"
    path.write_bytes(b'id,text\r\n1,"a\r\nb ""c"""\r\n')
    assert read_csv(path) == [{"id": "1", "text": 'a\r\nb "c"'}]


def test_a_long_field_of_a_csv_is_read(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text(f"id,text\n1,{'x' * 200_000}\n")
    assert len(read_csv(path)[0]["text"]) == 200_000


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.tsv", b"A\tB\n1\t2\n3\n", "line 3: 1 fields where the first line has 2"),
        ("a.csv", b"a,b\n1\n", "row 1: not as many fields"),
        ("a.csv", b"a,b\n1,2,3\n", "row 1: not as many fields"),
        ("a.json", b'{"a": 1}\n{"a": ', "line 2: not valid JSON"),
        ("a.jsonl", b'{"a": 1}\n[', "line 2: not valid JSON"),
        ("a.jsonl", b'{"a": "\xff"}\n', "not UTF-8"),
        ("a.parquet", b"PAR1 and no more", "not a Parquet file"),
    ],
)
def test_a_damaged_file_is_told_in_one_line(tmp_path, name, content, words):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(UserError, match=words) as caught:
        read_plain_tsv(path) if name.endswith("tsv") else read_table(path)
    assert "\n" not in str(caught.value)
