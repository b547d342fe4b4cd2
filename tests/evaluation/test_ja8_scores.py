"""Scores of Japanese answers, counted by hand and by the libraries that define them."""

from __future__ import annotations

import pytest

from evaluation import japanese
from evaluation.tasks.ja8 import functions


@pytest.mark.parametrize(
    "text,normal",
    [
        (" ＡＢＣ　１２３ ", "ABC 123"),  # full width to half width, one kind of space
        ("ｶﾀｶﾅ", "カタカナ"),
        ("すごーーーい", "すごーい"),
        ("東京😀☀です", "東京です"),
        ("a\n b", "a b"),
        ("Tokyo", "Tokyo"),  # case stays
        ("", ""),
    ],
)
def test_normal_form(text, normal):
    assert japanese.normal(text) == normal


def test_words_are_mecabs():
    assert japanese.words("株式会社です。") == ["株式", "会社", "です", "。"]
    assert japanese.words("") == []


@pytest.mark.parametrize(
    "answer,golds,exact,f1",
    [
        ("株式会社", ["会社", "株式会社"], 1.0, 1.0),
        (" 株式会社\n", ["株式会社"], 1.0, 1.0),
        # Words 株式 会社 against 会社: one shared of two and one.
        ("株式会社", ["会社"], 0.0, 2 / 3),
        # The full stop is no word for F1, but a difference for the exact match.
        ("会社。", ["会社"], 0.0, 1.0),
        ("東京</s>", ["東京"], 0.0, None),
        ("", ["会社"], 0.0, 0.0),
        ("。", ["、"], 0.0, 0.0),
    ],
)
def test_extraction(answer, golds, exact, f1):
    found = functions.extraction({"answers": golds}, [answer])
    assert found["exact_match"] == exact
    assert found["gold"] == golds
    if f1 is not None:
        assert found["f1"] == pytest.approx(f1)


@pytest.mark.parametrize(
    "answer,gold,published,corrected",
    [
        ("2~3", "23", 1, 0),
        ("2～3", "2〜3", 1, 1),
        ("10〜20円", "1020円", 1, 0),
        ("すご〜い", "すごい", 1, 1),  # a tilde that lengthens a vowel
        ("2－3", "2-3", 0, 1),
        ("－5度", "-5度", 0, 1),
        ("1,000人", "1000人", 0, 1),
        ("サーバー3", "サーバー3", 1, 1),
    ],
)
def test_ranges_and_signs(answer, gold, published, corrected):
    row = {"answers": [gold]}
    assert functions.extraction(row, [answer])["exact_match"] == published
    found = functions.extraction_with_numbers(row, [answer])
    assert (found["exact_match"], found["gold"]) == (corrected, [gold])


@pytest.mark.parametrize(
    "answer,number,published,corrected",
    [
        ("5+6=11。答えは11です。", 11, 1, 1),
        ("答えは1,234ドルです。", 1234, 1, 1),
        ("答えは8.", 8, 1, 1),
        ("答えは-3です", -3, 1, 1),
        ("答えは8.5です", 8, 0, 0),
        ("11ではなく12", 11, 0, 0),
        ("答えは１１です。", 11, 0, 1),  # full-width digits
        ("2+3=5\n\n5*2=10", 10, 1, 1),  # as if the stop string had not cut it
        ("答えはない", 0, 0, 0),
        (",", 0, 0, 0),
        ("1.2.3", 1, 0, 0),
        ("9" * 400, 9, 0, 0),
        ("", 0, 0, 0),
        # A right number, and what may follow or surround it.
        ("答えは72です，", 72, 1, 1),
        ("答えは72です…", 72, 1, 1),
        ("The answer is 72, so she has enough.", 72, 0, 1),
        ("72 dollars.", 72, 0, 1),
        ("答えは７２．", 72, 0, 1),
        ("合計 ¥7,200，です", 7200, 1, 1),
        ("72.00円", 72, 1, 1),
        ("72％です", 72, 1, 1),
        ("面積は72㎡、72 m2", 72, 0, 1),
        ("－5です", -5, 0, 1),
        ("70-72個", 72, 0, 1),
        ("1万2千円", 12000, 0, 1),
        ("答えは72.5", 72, 0, 0),
    ],
)
def test_calculations(answer, number, published, corrected):
    row = {"answer_number": number}
    assert functions.calculation(row, [answer]) == {"acc": published, "gold": number}
    assert functions.calculation_in_any_digits(row, [answer])["acc"] == corrected


def test_a_tie_of_two_sentences_is_wrong_either_way():
    for gold in (0, 1):
        row = {"gold": gold}
        assert functions.likelier(row, [(-1.0, False), (-1.0, False)]) == {"acc": 0.0}
        assert functions.likelier(row, [(-1.0, False), (-2.0, False)]) == {"acc": float(gold == 0)}


PAIRS = [
    ("大統領は日本を訪れた。", "大統領が日本を訪れたと発表した。"),
    ("雨が降る", "雪が降る"),
    ("同じ文です", "同じ文です"),
    ("", "要約です"),
]


@pytest.mark.parametrize("answer,summary", PAIRS)
def test_summaries_are_scored_as_rouge_score_does_with_either_tokens(answer, summary):
    from rouge_score.rouge_scorer import RougeScorer

    class Subwords:
        def tokenize(self, text: str) -> list[str]:
            return [text[i : i + 2] for i in range(0, len(text), 2)]

    class Mecab:
        def tokenize(self, text: str) -> list[str]:
            return japanese.words(text)

    row = {"summary": summary}
    found = {
        Subwords: functions.subword_rouge2(row, [answer], Subwords())["rouge2"],
        Mecab: functions.word_rouge2(row, [answer])["rouge2"],
    }
    for tokenizer, value in found.items():
        scorer = RougeScorer(["rouge2"], tokenizer=tokenizer())
        assert value == pytest.approx(scorer.score(summary, answer)["rouge2"].fmeasure)
