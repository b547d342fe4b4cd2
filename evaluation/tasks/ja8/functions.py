"""Prompts, caps and scores of the eight tasks, by prompt version and fidelity."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import TYPE_CHECKING, Any

from evaluation import japanese
from evaluation.metrics import rouge2

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Row = Mapping[str, Any]
_RELATIONS = ("entailment", "contradiction", "neutral")
_NUMBER = re.compile(r"-?[0-9.,]+")
# Full-width and typographic forms of digits, points and signs. Not NFKC, which makes digits of
# superscripts and of units: ² and ㎡ would end a number.
_FORMS = str.maketrans("０１２３４５６７８９，．－−‐‑–＋", "0123456789,.-----+")
# A sign that no number or letter precedes (else it subtracts or joins), digits that may be divided
# into thousands, decimals.
_SIGN = r"(?:(?<![A-Za-z0-9)）])-)?"
_WRITTEN = re.compile(
    rf"(?<![.])(?P<value>{_SIGN}(?:[0-9]{{1,3}}(?:[,'’\u00a0\u2009\u202f][0-9]{{3}})+(?![0-9])|[0-9]+)"
    r"(?:\.[0-9]+)?)(?P<unit>[千万億]?)"
)
_UNITS = {"千": 10**3, "万": 10**4, "億": 10**8}
# Digits that belong to a unit, a formula or an exponent.
_NO_NUMBERS = re.compile(r"(?:\b[ckmdμ]?m|(?<=[0-9])[ckmdμ]?m|CO|H)[23](?![0-9])|\^\{?-?[0-9]+\}?")
_CHOOSE = "出力は以下から選択してください：\n"


@dataclass(frozen=True)
class Template:
    """A prompt version.

    Attributes:
        description: Comes once, at the beginning.
        body: An item, with the places {instruction} and {input}.
        separator: Follows each solved example.
    """

    description: str
    body: str
    separator: str


TEMPLATES = {
    "0.3": Template(
        description=(
            "以下は、タスクを説明する指示と、文脈のある入力の組み合わせです。"
            "要求を適切に満たす応答を書きなさい。\n\n"
        ),
        body="### 指示:\n{instruction}\n\n### 入力:\n{input}\n\n### 応答:\n",
        separator="\n\n",
    ),
    "0.6": Template(
        description="<s>[INST] <<SYS>>\nあなたは役立つアシスタントです。\n<</SYS>>\n\n",
        body="{instruction}\n\n{input} [/INST] ",
        separator=" </s><s>[INST] ",
    ),
}
INSTRUCTIONS = {
    "mgsm": "与えられた問題に対して、ステップごとに答えを導き出してください。",
    "xlsum_ja": "与えられたニュース記事を要約してください。",
    "jaqket_v2": "与えられた文脈から、質問に対する答えを抜き出してください。",
    "jsquad": "与えられた文脈から、質問に対する答えを抜き出してください。",
    "marc_ja": (
        "以下の製品レビューを、ポジティブまたはネガティブの感情クラスのいずれかに分類してください。"
    ),
    "jnli": f"与えられた前提と仮説の関係を回答してください。\n\n{_CHOOSE}含意\n矛盾\n中立",
    "jcommonsenseqa": f"与えられた選択肢の中から、最適な答えを選んでください。{_CHOOSE}",
}
# The only task whose wording differs between the two versions.
INSTRUCTIONS_06 = {
    "jcommonsenseqa": f"与えられた5つの選択肢の中から、最適な答えを選んでください。{_CHOOSE}",
}


def _input(task: str, prompt: str, row: Row) -> str:
    """Write an item's input."""
    if task == "mgsm":
        return row["question"].replace("問題：", "")
    if task == "xlsum_ja":
        return f"ニュース記事:{row['text']}"
    if task == "marc_ja":
        return row["sentence"]
    if task == "jnli":
        return f"前提：{row['premise']}\n仮説：{row['hypothesis']}"
    if task == "jcommonsenseqa":
        return row["question"] if prompt == "0.3" else f"質問：{row['question']}"
    # A context of JSQuAD begins with its title.
    context = (
        row["context"].split("[SEP]")[-1].strip()
        if task == "jsquad"
        else "\n".join(row["contexts"])
    )
    return f"文脈：{context}\n質問：{row['question']}"


def _text(task: str, prompt: str) -> Callable[[Row], str]:
    """Make the function that writes an item in a prompt version, without its answer."""
    body = TEMPLATES[prompt].body
    instruction = INSTRUCTIONS[task]
    if prompt == "0.6":
        instruction = INSTRUCTIONS_06.get(task, instruction)

    def text(row: Row) -> str:
        choices = "\n".join(f"- {choice}" for choice in row.get("choices", ()))
        return body.format(instruction=instruction + choices, input=_input(task, prompt, row))

    return text


def nothing(row: Row) -> str:
    """Put nothing in front: an entire sentence is scored."""
    return ""


def sentences(row: Row) -> list[str]:
    """List the two sentences of which one is right."""
    return [row["sentence1"], row["sentence2"]]


def relation(row: Row) -> int:
    """Number a relation as the choices are numbered."""
    return _RELATIONS.index(row["label"])


def first_answer(row: Row) -> str:
    """Take the answer that a solved example shows."""
    return row["answers"][0]


def steps(row: Row) -> str:
    """Take the calculation that a solved example shows."""
    return row["answer"].replace("ステップごとの答え：", "")


def longest_answer(row: Row, tokenizer: PreTrainedTokenizerBase) -> int:
    """Count the tokens of the longest right answer, which cap what the model may write."""
    return max(len(tokenizer.encode(answer, add_special_tokens=False)) for answer in row["answers"])


def summary_and_ten(row: Row, tokenizer: PreTrainedTokenizerBase) -> int:
    """Count the tokens of the right summary, plus ten."""
    return len(tokenizer.encode(row["summary"], add_special_tokens=False)) + 10


def likelier(row: Row, results: Sequence[tuple[float, bool]]) -> dict[str, float]:
    """Compare the two sentences; a tie is wrong."""
    (first, _), (second, _) = results
    right, wrong = (first, second) if row["gold"] == 0 else (second, first)
    return {"acc": float(right > wrong)}


def extraction(row: Row, results: Sequence[str]) -> dict[str, Any]:
    """Compare an answer taken from a text with every right one; the best counts."""
    return {
        "exact_match": japanese.exact_match(results[0], row["answers"]),
        "f1": japanese.f1(results[0], row["answers"]),
        "gold": row["answers"],
    }


def extraction_with_numbers(row: Row, results: Sequence[str]) -> dict[str, Any]:
    """Compare likewise, with ranges and signs left in the texts."""
    golds = [japanese.with_numbers(answer) for answer in row["answers"]]
    return extraction({"answers": golds}, [japanese.with_numbers(results[0])]) | {
        "gold": row["answers"]
    }


def last_number(text: str) -> int | None:
    """Find the last number of a text, None where there is none or it is not an integer.

    Commas separate thousands, and full stops at the number's ends are its sentence's. Only ASCII
    digits count.
    """
    found = _NUMBER.findall(text)
    try:
        number = float(found[-1].strip(".").replace(",", ""))
    except (IndexError, ValueError):
        return None
    return int(number) if number.is_integer() else None


def calculation(row: Row, results: Sequence[str]) -> dict[str, Any]:
    """Compare the last number of the answer's first line with the right one."""
    number = row["answer_number"]
    return {"acc": float(last_number(results[0]) == number), "gold": number}


def last_written_number(text: str) -> int | None:
    """Find the last number of a text as a reader does, None where it is not an integer.

    Whatever punctuation follows is not part of it; digits may be full-width, divided into
    thousands, followed by zeros after a point, or by 千, 万 and 億 (1万2千).
    """
    text = _NO_NUMBERS.sub(" ", text.translate(_FORMS))
    total, end = Decimal(0), None
    for match in _WRITTEN.finditer(text):
        value = Decimal(re.sub(r"[^-0-9.]", "", match["value"]))
        value = value * _UNITS[match["unit"]] if match["unit"] else value
        # 1万 and 2千 are parts of one number where nothing is between them.
        joined = end == match.start() and text[match.start() - 1] in "千万億"
        total, end = (total + value if joined else value), match.end()
    whole = end is not None and total == total.to_integral_value()
    return int(total) if whole else None


def calculation_in_any_digits(row: Row, results: Sequence[str]) -> dict[str, Any]:
    """Compare the last number of the entire answer, however it is written."""
    number = row["answer_number"]
    return {"acc": float(last_written_number(results[0]) == number), "gold": number}


def subword_rouge2(
    row: Row, results: Sequence[str], tokenizer: PreTrainedTokenizerBase
) -> dict[str, float]:
    """Score a summary by pairs of the model's own tokens."""
    answer, target = tokenizer.tokenize(results[0]), tokenizer.tokenize(row["summary"])
    return {"rouge2": rouge2(answer, target)}


def word_rouge2(row: Row, results: Sequence[str]) -> dict[str, float]:
    """Score a summary by pairs of MeCab's words."""
    answer, target = (japanese.with_numbers(text) for text in (results[0], row["summary"]))
    return {"rouge2": rouge2(japanese.words(answer), japanese.words(target))}


def _generation(task: str, fidelity: str) -> dict[str, Any]:
    """Say how answers are ended, capped and scored, for the tasks that write one."""
    published = fidelity == "published"
    if task == "mgsm":
        return {
            "generation_kwargs": {
                "until": ["\n"] if published else ["\n\n", "###", "[INST]"],
                "max_gen_toks": 256 if published else 512,
            },
            "process_results": calculation if published else calculation_in_any_digits,
        }
    ends: dict[str, Any] = {"ignore_eos": True} if published else {"max_gen_toks": 256}
    changes: dict[str, Any] = {"generation_kwargs": ends}
    if published:
        cap = summary_and_ten if task == "xlsum_ja" else longest_answer
        changes["metadata"] = {"cap": cap}
    if task == "xlsum_ja":
        aggregation = "bootstrap_median" if published else "mean"
        changes["process_results"] = subword_rouge2 if published else word_rouge2
        changes["metric_list"] = [{"metric": "rouge2", "aggregation": aggregation}]
    elif not published:
        changes["process_results"] = extraction_with_numbers
    return changes


def definition(task: str, prompt: str, fidelity: str) -> dict[str, Any]:
    """Say what prompt version (0.3, 0.6) and fidelity change in a task's lm-eval definition."""
    if task == "xwinograd_ja":
        return {}
    changes = {
        "description": TEMPLATES[prompt].description,
        "doc_to_text": _text(task, prompt),
        "fewshot_delimiter": TEMPLATES[prompt].separator,
    }
    if task in ("mgsm", "jsquad", "jaqket_v2", "xlsum_ja"):
        changes |= _generation(task, fidelity)
    return changes
