"""Prompts of the KoBEST tasks, and what the corrected fidelity changes in them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

Row = Mapping[str, Any]
_CONNECTORS = {"원인": "왜냐하면", "결과": "그래서"}


def boolq(row: Row) -> str:
    """Ask a yes-or-no question about a paragraph, with a space left behind the cue."""
    return f"{row['paragraph']} 질문: {row['question']} 답변: "


def copa(row: Row) -> str:
    """Join the premise and, after two spaces, the word for its cause or its effect."""
    return f"{row['premise']}  {_CONNECTORS[row['question'].strip()]}"


def copa_choices(row: Row) -> list[str]:
    """List the two alternatives."""
    return [row["alternative_1"], row["alternative_2"]]


def hellaswag(row: Row) -> str:
    """Show the sentences to be continued."""
    return f"문장: {row['context']}"


def hellaswag_choices(row: Row) -> list[str]:
    """List the four endings."""
    return [row[f"ending_{number}"] for number in (1, 2, 3, 4)]


def sentineg(row: Row) -> str:
    """Ask for the sentiment of a sentence."""
    return f"문장: {row['sentence']} 긍부정:"


def _wic(row: Row, particle: str) -> str:
    return (
        f"문장1: {row['context_1']} 문장2: {row['context_2']} "
        f"두 문장에서 {row['word']}{particle} 같은 뜻으로 쓰였나?"
    )


def wic(row: Row) -> str:
    """Ask whether a word means the same in two sentences, with one particle for every word."""
    return _wic(row, "가")


def subject_particle(word: str) -> str:
    """Choose the subject particle that a Korean word takes: 이 after a final consonant, else 가."""
    syllable = ord(word[-1]) - 0xAC00 if word else -1
    # A Hangul syllable's code is 28 times its onset and vowel plus its final consonant.
    return "이" if 0 <= syllable < 11172 and syllable % 28 else "가"


def _corrected_wic(row: Row) -> str:
    return _wic(row, subject_particle(row["word"]))


def _stripped(function: Callable[[Row], Any]) -> Callable[[Row], Any]:
    """Make a function work on a row whose texts have no blanks at their ends."""

    def with_stripped_texts(row: Row) -> Any:
        return function(
            {key: value.strip() if isinstance(value, str) else value for key, value in row.items()}
        )

    return with_stripped_texts


def _corrected_boolq(row: Row) -> str:
    return boolq(row).rstrip()


def _corrected_copa(row: Row) -> str:
    return f"{row['premise']} {_CONNECTORS[row['question']]}"


_CORRECTED: dict[str, dict[str, Callable[[Row], Any]]] = {
    "boolq": {"doc_to_text": _stripped(_corrected_boolq)},
    "copa": {
        "doc_to_text": _stripped(_corrected_copa),
        "doc_to_choice": _stripped(copa_choices),
    },
    "hellaswag": {
        "doc_to_text": _stripped(hellaswag),
        "doc_to_choice": _stripped(hellaswag_choices),
    },
    "sentineg": {"doc_to_text": _stripped(sentineg)},
    "wic": {"doc_to_text": _stripped(_corrected_wic)},
}


def definition(task: str, prompt: str | None, fidelity: str | None) -> dict[str, Any]:
    """Say what a task's fidelity changes in its lm-eval definition.

    published changes nothing; corrected takes away doubled and trailing blanks and gives WiC's word
    the particle that it takes. There is one prompt.
    """
    return dict(_CORRECTED[task]) if fidelity == "corrected" else {}
