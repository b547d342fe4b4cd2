"""The table of references: every wrong field is named with its line."""

import pytest

from common.errors import UserError
from paper.hub.lock import locked
from paper.hub.table import TABLE, find, read_table

HEADER = "id\tkind\trepository\trevision\tgb\tparameters\tlicence\tgated\tpickle\tfiles\tnote"
GOOD = ["m", "model", "owner/name", "", "14.5", "7", "Apache-2.0", "yes", "no", "", "a note"]


def write(folder, *rows):
    path = folder / "hub.tsv"
    path.write_text("\n".join([HEADER, *("\t".join(row) for row in rows)]) + "\n")
    return path


def changed(**fields):
    names = HEADER.split("\t")
    return [fields.get(name, value) for name, value in zip(names, GOOD, strict=True)]


def test_the_shipped_table_names_the_papers_models():
    table = read_table(TABLE)
    repositories = {reference.repository for reference in table.values()}
    assert {
        "mistralai/Mistral-7B-v0.1",
        "augmxnt/shisa-gamma-7b-v1",
        "WizardLMTeam/WizardMath-7B-V1.1",
        "GAIR/Abel-7B-002",
        "meta-llama/Meta-Llama-3-8B-Instruct",
        "beomi/Llama-3-Open-Ko-8B",
        "defog/llama-3-sqlcoder-8b",
        "VAGOsolutions/Llama-3-SauerkrautLM-8b-Instruct",
        "SakanaAI/EvoLLM-JP-v1-7B",
    } <= repositories
    assert table["llama3_8b_instruct"].gated


def test_fields_are_read(tmp_path):
    reference = find("m", write(tmp_path, GOOD))
    assert (reference.gb, reference.parameters, reference.gated) == (14.5, 7, True)
    assert reference.page == "https://huggingface.co/owner/name"


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"kind": "modle"}, "line 2: kind is 'modle' (did you mean 'model'?)"),
        ({"repository": "name"}, "line 2: repository is 'name'"),
        ({"revision": "main"}, "line 2: revision is 'main'"),
        ({"gb": "-1"}, "line 2: gb is '-1'"),
        ({"gb": "nan"}, "line 2: gb is 'nan'"),
        ({"gb": "inf"}, "line 2: gb is 'inf'"),
        ({"gated": "maybe"}, "line 2: gated is 'maybe'"),
        ({"kind": "dataset"}, "line 2: a data set needs files"),
    ],
)
def test_a_wrong_field_is_named(tmp_path, fields, told):
    with pytest.raises(UserError) as caught:
        read_table(write(tmp_path, changed(**fields)))
    assert told in str(caught.value)


def test_a_line_with_too_few_fields_a_double_and_a_missing_id(tmp_path):
    with pytest.raises(UserError, match="line 2: 3 fields; 11 are needed"):
        read_table(write(tmp_path, GOOD[:3]))
    with pytest.raises(UserError, match="line 3: m is in the table twice"):
        read_table(write(tmp_path, GOOD, GOOD))
    with pytest.raises(UserError, match="no reference 'n'"):
        find("n", write(tmp_path, GOOD))


def test_a_quotation_mark_is_a_character_like_any_other(tmp_path):
    table = read_table(write(tmp_path, changed(note='"big'), changed(id="n", note='5" disk')))
    assert [reference.note for reference in table.values()] == ['"big', '5" disk']


def test_a_table_that_is_no_text_is_one_line(tmp_path):
    path = write(tmp_path, GOOD)
    path.write_bytes(path.read_bytes() + b"\xff\n")
    with pytest.raises(UserError, match="is no text in UTF-8"):
        read_table(path)
    with pytest.raises(UserError, match="is no text in UTF-8"):
        read_table(tmp_path)


@pytest.mark.parametrize(
    "lock",
    [
        "[]",
        '{"m": 3}',
        '{"m": {}}',
        '{"m": {"repository": "owner/name", "revision": "1", "files": []}}',
        '{"m": {"repository": "owner/name", "revision": "1", "files": {"a": {}}}}',
    ],
)
def test_a_damaged_lock_is_one_line(tmp_path, lock):
    reference = find("m", write(tmp_path, GOOD))
    (tmp_path / "hub.lock.json").write_text(lock)
    with pytest.raises(UserError, match=r"hub.lock.json is damaged at m; restore it") as caught:
        locked(tmp_path / "hub.lock.json", reference)
    assert "\n" not in str(caught.value)
