"""Prompts, caps and scores of the eight tasks, by prompt version and fidelity."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from evaluation import japanese
from evaluation.metrics import rouge2

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Row = Mapping[str, Any]
_RELATIONS = ("entailment", "contradiction", "neutral")
_NUMBER = re.compile(r"-?[0-9.,]+")
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


def calculation_in_any_digits(row: Row, results: Sequence[str]) -> dict[str, Any]:
    """Compare the last number of the entire answer, full-width digits included."""
    return calculation(row, [unicodedata.normalize("NFKC", results[0])])


def subword_rouge2(
    row: Row, results: Sequence[str], tokenizer: PreTrainedTokenizerBase
) -> dict[str, float]:
    """Score a summary by pairs of the model's own tokens."""
    answer, target = tokenizer.tokenize(results[0]), tokenizer.tokenize(row["summary"])
    return {"rouge2": rouge2(answer, target)}


def word_rouge2(row: Row, results: Sequence[str]) -> dict[str, float]:
    """Score a summary by pairs of MeCab's words."""
    return {"rouge2": rouge2(japanese.words(results[0]), japanese.words(row["summary"]))}


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
