"""Calibration rows against hand-made data sets of the published schemas."""

import json

import pytest

from common.errors import UserError
from paper.calibration.convert import Layout, convert
from paper.cli import main


@pytest.fixture
def sums(tmp_path):
    """A data set whose rows can be told apart: the answer of row i is i."""
    folder = tmp_path / "sums"
    folder.mkdir()
    rows = [{"query": f"What is {i} + 0?", "response": f"It is {i}."} for i in range(50)]
    (folder / "train.json").write_text(json.dumps(rows))
    return folder


LAYOUT = Layout(("query",), ("response",))


def test_a_row_is_the_papers_template(sums):
    rows, counts = convert(sums, LAYOUT, rows=50, seed=0, task="math")
    number = rows[0]["answer"].removeprefix("It is ").removesuffix(".")
    assert rows[0] == {
        "task": "math",
        "prompt": "Below is an instruction that describes a task. Write a response that "
        "appropriately completes the request.\n\n### Instruction:\n"
        f"What is {number} + 0?\n\n### Response:\n",
        "answer": f"It is {number}.",
        "eos": True,
    }
    assert {row["answer"] for row in rows} == {f"It is {i}." for i in range(50)}
    assert counts == {"rows": 50, "empty": 0, "too_long": 0, "cut": 0, "chosen": 50}


def test_the_seed_changes_the_draw_and_nothing_else_does(sums):
    first, _ = convert(sums, LAYOUT, rows=10, seed=0, task="math")
    again, _ = convert(sums, LAYOUT, rows=10, seed=0, task="math")
    other, _ = convert(sums, LAYOUT, rows=10, seed=1, task="math")
    assert first == again
    assert {row["answer"] for row in first} != {row["answer"] for row in other}


def test_columns_are_joined_and_empty_ones_skipped(tmp_path):
    (tmp_path / "a.jsonl").write_text(
        json.dumps({"q": "How many?", "table": "CREATE TABLE t (n int)", "sql": "SELECT 1"})
        + "\n"
        + json.dumps({"q": "How few?", "table": "", "sql": "SELECT 2"})
        + "\n"
        + json.dumps({"q": "None?", "table": None, "sql": " "})
        + "\n"
    )
    layout = Layout(("q", "table"), ("sql",), joiner=" : ", template="plain")
    rows, _ = convert(tmp_path, layout, rows=2, seed=0, task="sql")
    assert {row["prompt"]: row["answer"] for row in rows} == {
        "How many? : CREATE TABLE t (n int)": "SELECT 1",
        "How few?": "SELECT 2",
    }
    with pytest.raises(UserError, match="gives 2 usable rows of 3 and 3 were asked for"):
        convert(tmp_path, layout, rows=3, seed=0, task="sql")


def test_plain_text_has_no_prompt(tmp_path):
    (tmp_path / "a.csv").write_text('id,text\n1,"서울은 수도이다."\n')
    layout = Layout((), ("text",), template="plain", eos=False)
    rows, _ = convert(tmp_path, layout, rows=1, seed=0, task="ko")
    assert rows == [{"task": "ko", "prompt": "", "answer": "서울은 수도이다.", "eos": False}]


def word_tokenizer():
    """One token a word, and a beginning-of-sequence token."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = ["<unk>", "<s>", "</s>", *"abcdefghij"]
    inner = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, "<unk>"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=inner, bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )


@pytest.mark.parametrize(
    ("answer", "kept", "eos"),
    [
        ("d e f g", "d e f g", True),  # 1 + 3 + 4 + 1 = 9 tokens
        ("d e f g h", "d e f g h", False),  # one more: the end-of-sequence token goes
        ("d e f g h i j", "d e f g h", False),
    ],
)
def test_long_samples_are_cut_at_their_end(tmp_path, answer, kept, eos):
    (tmp_path / "a.jsonl").write_text(json.dumps({"q": "a b c ", "r": answer}) + "\n")
    layout = Layout(("q",), ("r",), template="plain")
    rows, counts = convert(
        tmp_path,
        layout,
        rows=1,
        seed=0,
        task="t",
        tokenizer=word_tokenizer(),
        max_length=9,
    )
    assert (rows[0]["answer"].strip(), rows[0]["eos"]) == (kept, eos)
    assert counts["cut"] == (kept != answer or not eos)


def test_a_prompt_longer_than_the_length_is_passed_over(tmp_path):
    lines = [{"q": "a b c d e f g h i j", "r": "a"}, {"q": "a", "r": "b"}]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    rows, counts = convert(
        tmp_path,
        Layout(("q",), ("r",), template="plain"),
        rows=1,
        seed=0,
        task="t",
        tokenizer=word_tokenizer(),
        max_length=8,
    )
    assert rows[0]["answer"] == "b"
    assert counts["too_long"] <= 1


def test_the_command_writes_rows_and_manifest(sums, tmp_path, capsys):
    out = tmp_path / "math.jsonl"
    given = ["--source", str(sums), "--prompt", "query", "--answer", "response"]
    assert main(["calibration", *given, "--rows", "5", "--out", str(out)]) == 0
    assert len(out.read_text().splitlines()) == 5
    about = json.loads((tmp_path / "math.manifest.json").read_text())
    assert about["extra"]["rows"] == 50
    assert "5 of 50 rows" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (["--answer", "respons"], "no column 'respons' (did you mean 'response'?)"),
        (["--rows", "0"], "--rows 0 is none"),
        (["--max-length", "99"], "belong together"),
        (["--max-length", "99", "--tokenizer", "nowhere"], "--tokenizer nowhere: no model's"),
    ],
)
def test_bad_input_is_one_line(sums, tmp_path, change, told):
    given = ["--source", str(sums), "--prompt", "query", "--answer", "response", "--rows", "5"]
    with pytest.raises(UserError) as caught:
        main(["calibration", *given, "--out", str(tmp_path / "x.jsonl"), *change])
    assert told in str(caught.value)
    assert not (tmp_path / "x.jsonl").exists()


def test_an_empty_folder_and_a_file_of_another_shape(tmp_path):
    with pytest.raises(UserError, match="fetch the data set first"):
        convert(tmp_path, LAYOUT, rows=1, seed=0, task="t")
    (tmp_path / "a.json").write_text('{"rows": 3}')
    with pytest.raises(UserError, match="does not hold a list of rows"):
        convert(tmp_path, LAYOUT, rows=1, seed=0, task="t")
