"""Converters on hand-made rows in the formats of the hub and of the first publications."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from common.errors import UserError
from evaluation.data.converters import converter_of


def write(folder: Path, name: str, rows) -> Path:
    """Write rows in the format that the name's ending says."""
    path = folder / name
    if name.endswith(".parquet"):
        import pyarrow
        import pyarrow.parquet

        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    elif name.endswith(".jsonl"):
        path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    elif name.endswith(".json"):
        path.write_text(json.dumps(rows, ensure_ascii=False))
    else:
        path.write_text(rows)
    return path


def convert(suite: str, task: str, path: Path) -> list[dict]:
    return converter_of(suite, task)({"items": path})["items"]


def test_mgsm_from_its_table_reads_thousands(tmp_path):
    path = write(tmp_path, "a.tsv", "卵は何個？\t18\nいくら？\t2,125\n")
    assert convert("ja8", "mgsm", path) == [
        {"id": 0, "question": "卵は何個？", "answer": "", "answer_number": 18},
        {"id": 1, "question": "いくら？", "answer": "", "answer_number": 2125},
    ]


def test_mgsm_from_exemplars_and_from_parquet(tmp_path):
    reasoned = "ステップごとの答え：5+6=11。答えは1,011です。"
    exemplars = write(tmp_path, "a.json", {"1": {"q": "問題：何個？", "a": reasoned}})
    expected = {"id": 0, "question": "問題：何個？", "answer": reasoned, "answer_number": 1011}
    assert convert("ja8", "mgsm", exemplars) == [expected]
    hub = [
        {"question": "問題：何個？", "answer": reasoned, "answer_number": 7},
        {"question": "いくら？", "answer": None, "answer_number": 3},
    ]
    rows = convert("ja8", "mgsm", write(tmp_path, "b.parquet", hub))
    assert rows == [
        expected | {"answer_number": 7},
        {"id": 1, "question": "いくら？", "answer": "", "answer_number": 3},
    ]


def test_xwinograd_pairs_put_the_candidates_in_the_pronouns_place(tmp_path):
    fields = [
        "jp",
        "test",
        "The cat saw the dog because it barked.",
        "猫は犬を見た。それが吠えたからだ。",
        json.dumps(["猫", "は", "犬", "を見た。", "それ", "が吠えたからだ。"]),
        json.dumps(["それ", [4, 5], ["それ"]]),
        json.dumps([["猫", [0, 1], ["猫"], False], ["犬", [2, 3], ["犬"], True]]),
    ]
    rows = convert("ja8", "xwinograd_ja", write(tmp_path, "a.tsv", "\t".join(fields) + "\n"))
    assert rows == [
        {
            "id": 0,
            "sentence1": "猫は犬を見た。猫が吠えたからだ。",
            "sentence2": "猫は犬を見た。犬が吠えたからだ。",
            "gold": 1,
        }
    ]
    hub = [{"sentence1": "あ", "sentence2": "い", "answer": "1"}]
    rows = convert("ja8", "xwinograd_ja", write(tmp_path, "b.json", hub))
    assert rows == [{"id": 0, "sentence1": "あ", "sentence2": "い", "gold": 0}]


def test_xlsum_from_csv(tmp_path):
    path = write(
        tmp_path, "a.csv", 'id,url,title,summary,text\nn1,u,t,要約,"本文、""引用""\n二行目"\n'
    )
    expected = {"id": "n1", "text": '本文、"引用"\n二行目', "summary": "要約"}
    assert convert("ja8", "xlsum_ja", path) == [expected]


def test_jaqket_keeps_five_texts_and_drops_rows_without_the_answer(tmp_path):
    def row(qid: str, answered: int | None) -> dict:
        contexts = [{"text": f"文{n}", "has_answer": n == answered} for n in range(7)]
        return {"qid": qid, "question": "誰？", "answers": ["信長", "織田信長"], "ctxs": contexts}

    path = write(tmp_path, "a.json", [row("q1", 4), row("q2", 5), row("q3", None)])
    assert convert("ja8", "jaqket_v2", path) == [
        {
            "id": "q1",
            "question": "誰？",
            "contexts": ["文0", "文1", "文2", "文3", "文4"],
            "answers": ["信長", "織田信長"],
        }
    ]


def test_marc_and_jnli_labels_by_name_and_by_number(tmp_path):
    named = write(tmp_path, "a.jsonl", [{"sentence": "良い", "label": "positive"}])
    assert convert("ja8", "marc_ja", named) == [{"id": 0, "sentence": "良い", "label": 0}]
    numbered = write(tmp_path, "a.parquet", [{"sentence": "悪い", "label": 1, "review_id": "R"}])
    assert convert("ja8", "marc_ja", numbered) == [{"id": 0, "sentence": "悪い", "label": 1}]
    pair = {"sentence_pair_id": "3", "yjcaptions_id": "c", "sentence1": "前", "sentence2": "仮"}
    for label, written in enumerate(["entailment", "contradiction", "neutral"]):
        expected = [{"id": "3", "premise": "前", "hypothesis": "仮", "label": written}]
        by_number = write(tmp_path, "b.parquet", [pair | {"label": label}])
        by_name = write(tmp_path, "b.jsonl", [pair | {"label": written}])
        assert convert("ja8", "jnli", by_number) == expected
        assert convert("ja8", "jnli", by_name) == expected
    with pytest.raises(UserError, match="label 'maybe' is none of entailment"):
        convert("ja8", "jnli", write(tmp_path, "c.jsonl", [pair | {"label": "maybe"}]))


def test_jcommonsenseqa_lists_its_choices(tmp_path):
    row = {"q_id": 7, "question": "どれ？", "label": 2} | {f"choice{n}": f"選{n}" for n in range(5)}
    assert convert("ja8", "jcommonsenseqa", write(tmp_path, "a.jsonl", [row])) == [
        {"id": 7, "question": "どれ？", "choices": ["選0", "選1", "選2", "選3", "選4"], "gold": 2}
    ]


def test_jsquad_is_the_same_nested_and_flat(tmp_path):
    about = {"id": "q", "question": "何？"}
    expected = about | {"title": "題", "context": "題 [SEP] 文。", "answers": ["甲", "乙"]}
    answers = [{"text": "甲", "answer_start": 0}, {"text": "乙", "answer_start": 1}]
    question = about | {"answers": answers, "is_impossible": False}
    paragraph = {"context": "題 [SEP] 文。", "qas": [question]}
    nested = write(tmp_path, "a.json", {"data": [{"title": "題", "paragraphs": [paragraph]}]})
    flat = about | {
        "title": "題",
        "context": "題 [SEP] 文。",
        "answers": {"text": ["甲", "乙"], "answer_start": [0, 1]},
    }
    assert convert("ja8", "jsquad", nested) == [expected]
    assert convert("ja8", "jsquad", write(tmp_path, "a.parquet", [flat])) == [expected]


@pytest.mark.parametrize(
    ("written", "label"), [("True", 1), ("TRUE", 1), ("False", 0), ("FALSE", 0)]
)
def test_boolq_spellings_of_true_and_false(tmp_path, written, label):
    path = write(tmp_path, "a.tsv", f'ID\tText\tQuestion\tAnswer\n1\t"글"\t질문?\t{written}\n')
    assert convert("kobest", "boolq", path) == [
        {"id": 0, "paragraph": '"글"', "question": "질문?", "label": label}
    ]


def test_copa_counts_from_one_in_the_table_and_from_zero_in_json_lines(tmp_path):
    table = "ID\tsentence\tquestion\t1\t2\tAnswer\n1\t전제\t결과\t가\t나\t2\n"
    expected = [
        {
            "id": 0,
            "premise": "전제",
            "question": "결과",
            "alternative_1": "가",
            "alternative_2": "나",
            "label": 1,
        }
    ]
    assert convert("kobest", "copa", write(tmp_path, "a.tsv", table)) == expected
    hub = {key: value for key, value in expected[0].items() if key != "id"}
    assert convert("kobest", "copa", write(tmp_path, "a.jsonl", [hub])) == expected
    wrong = table.replace("\t2\n", "\t3\n")
    with pytest.raises(UserError, match="row 1: '3' is not a label of copa"):
        convert("kobest", "copa", write(tmp_path, "b.tsv", wrong))


def test_sentineg_takes_the_negated_text_whatever_the_order_of_columns(tmp_path):
    header = "ID\tLabel_origin\tText_origin\tLabel\tText\tCategory_neg\n"
    path = write(tmp_path, "a.tsv", header + "3\t0\t마음에 안들음\t1\t마음에 듬\t1\n")
    assert convert("kobest", "sentineg", path) == [{"id": 0, "sentence": "마음에 듬", "label": 1}]
    path = write(tmp_path, "b.tsv", "ID\tText\tLabel\n1\t별로네요\t0\n")
    assert convert("kobest", "sentineg", path) == [{"id": 0, "sentence": "별로네요", "label": 0}]


def test_hellaswag_and_wic_of_kobest(tmp_path):
    table = "context\tchoice1\tchoice2\tchoice3\tchoice4\tlabel\n글\t가\t나\t다\t라\t3\n"
    endings = {f"ending_{n}": text for n, text in enumerate("가나다라", 1)}
    rows = convert("kobest", "hellaswag", write(tmp_path, "a.tsv", table))
    assert rows == [{"id": 0, "context": "글"} | endings | {"label": 3}]
    table = "Target\tSENTENCE1\tSENTENCE2\tANSWER\n손\t[손]을 잡다.\t[손]이 크다.\tTRUE\n"
    rows = convert("kobest", "wic", write(tmp_path, "b.tsv", table))
    word = {"word": "손", "context_1": "[손]을 잡다.", "context_2": "[손]이 크다."}
    assert rows == [{"id": 0} | word | {"label": 1}]
    with pytest.raises(UserError, match="no column 'ANSWER'"):
        convert(
            "kobest", "wic", write(tmp_path, "c.tsv", "Target\tSENTENCE1\tSENTENCE2\na\tb\tc\n")
        )


def options(*texts: str | None) -> dict:
    return {f"option_{letter}": text for letter, text in zip("abcde", texts, strict=False)}


def test_arc_keeps_its_options_at_their_letters(tmp_path):
    row = {"id": "ARC/1", "instruction": "Was?", "answer": "D"} | options("1", "", "3", "4", None)
    assert convert("okapi_de", "arc", write(tmp_path, "a.jsonl", [row])) == [
        {"id": "ARC/1", "question": "Was?", "options": ["1", None, "3", "4", None], "gold": 3}
    ]
    with pytest.raises(UserError, match="row 1: answer 'F' is not the letter"):
        convert("okapi_de", "arc", write(tmp_path, "b.jsonl", [row | {"answer": "F"}]))


def test_mmlu_takes_the_subject_from_the_identifier(tmp_path):
    row = {"id": "anatomy/test/0", "instruction": "Was?", "answer": "c"} | options(*"1234")
    assert convert("okapi_de", "mmlu", write(tmp_path, "a.jsonl", [row])) == [
        {
            "id": "anatomy/test/0",
            "subject": "anatomy",
            "question": "Was?",
            "options": ["1", "2", "3", "4"],
            "gold": 2,
        }
    ]
    with pytest.raises(UserError, match="answer 'E' is not the letter"):
        convert("okapi_de", "mmlu", write(tmp_path, "b.jsonl", [row | {"answer": "E"}]))


def test_hellaswag_and_truthfulqa_of_okapi(tmp_path):
    row = {
        "id": 4,
        "activity_label": "Hund",
        "ctx_a": "Ein Hund.",
        "ctx_b": "er",
        "ctx": "Ein Hund. er",
        "endings": ["a", "b", "c", "d"],
        "label": " 2",
    }
    assert convert("okapi_de", "hellaswag", write(tmp_path, "a.jsonl", [row])) == [
        {
            "id": 0,
            "activity_label": "Hund",
            "ctx_a": "Ein Hund.",
            "ctx_b": "er",
            "endings": ["a", "b", "c", "d"],
            "gold": 2,
        }
    ]
    hub = {
        "question": "Was?",
        "mc1_targets_choices": ["ja", "nein"],
        "mc1_targets_labels": [1, 0],
        "mc2_targets_choices": ["ja", "doch", "nein"],
        "mc2_targets_labels": [1, 1, 0],
    }
    assert convert("okapi_de", "truthfulqa", write(tmp_path, "b.jsonl", [hub])) == [
        {
            "id": 0,
            "question": "Was?",
            "mc1_targets": {"choices": ["ja", "nein"], "labels": [1, 0]},
            "mc2_targets": {"choices": ["ja", "doch", "nein"], "labels": [1, 1, 0]},
        }
    ]
    for damage in ({"mc1_targets_labels": [1]}, {"mc2_targets_labels": [0, 0, 0]}):
        with pytest.raises(UserError, match="the file is damaged"):
            convert("okapi_de", "truthfulqa", write(tmp_path, "c.jsonl", [hub | damage]))


def test_sql_questions_of_both_engines_stand_side_by_side(tmp_path):
    first = "question,query,db_name,query_category,instructions,full_instructions\n"
    second = "db_name,db_type,query_category,query,question,instructions\n"
    postgres = write(tmp_path, "p.csv", first + '"Wer, ""so""?",SELECT 1,yelp,ratio,ILIKE,all\n')
    sqlite = write(tmp_path, "s.csv", second + "yelp,sqlite,ratio,SELECT 2,Wer?,LIKE\n")
    converter = converter_of("sql_eval", "advanced")
    assert converter({"items": postgres, "sqlite": sqlite}) == {
        "items": [
            {
                "id": "advanced-0",
                "db_name": "yelp",
                "query_category": "ratio",
                "question": 'Wer, "so"?',
                "query": "SELECT 1",
                "instructions": "ILIKE",
                "full_instructions": "all",
                "sqlite": {"question": "Wer?", "query": "SELECT 2", "instructions": "LIKE"},
            }
        ]
    }
    other = write(tmp_path, "o.csv", second + "atis,sqlite,ratio,SELECT 2,Wer?,\n")
    with pytest.raises(UserError, match="row 1: not the question of that row"):
        converter({"items": postgres, "sqlite": other})
    with pytest.raises(UserError, match="0 questions, but"):
        converter({"items": postgres, "sqlite": write(tmp_path, "e.csv", second)})
