"""Word problems in Japanese and English, and bare calculations.

No trained role ever sees a Japanese problem with its result: the Japanese expert learns to set
up the formula, the mathematics experts learn to calculate from English. Japanese problems with
results are the held-out task, which only a merged model can be expected to solve.
"""

from __future__ import annotations

import random

from bottle.samples import Generator, Knowledge, Sample, plain_text
from bottle.worlds.japanese import NAMES

_LARGEST = 10
_LARGEST_FACTOR = 9
_NOISE_LIMIT = 60  # noise results stay in the range of true ones
_TWO_STEPS = 0.25
_ENGLISH_NAMES = [
    "Tom",
    "Anna",
    "Bob",
    "Lucy",
    "Sam",
    "Kate",
    "Jack",
    "Mary",
    "Paul",
    "Emma",
    "Nick",
    "Rose",
]
_THINGS = {
    "ja": ["りんご", "みかん", "本", "鉛筆", "卵", "花", "石", "箱", "切手", "飴"],
    "en": [
        "apples",
        "oranges",
        "books",
        "pencils",
        "eggs",
        "flowers",
        "stones",
        "boxes",
        "stamps",
        "candies",
    ],
}
_FIRST = {
    "ja": {
        "+": (
            "{n}|は|{i}|を|{a}|個|持つ|。|{m}|から|{b}|個|もらう|。|",
            "{n}|は|{i}|を|{a}|個|買う|。|さらに|{b}|個|足す|。|",
        ),
        "-": (
            "{n}|は|{i}|を|{a}|個|持つ|。|{m}|に|{b}|個|あげる|。|",
            "{n}|は|{i}|を|{a}|個|買う|。|{b}|個|食べる|。|",
        ),
        "*": (
            "箱|に|{i}|が|{a}|個|入る|。|{n}|は|箱|を|{b}|つ|持つ|。|",
            "{n}|は|{i}|を|毎日|{a}|個|買う|。|{b}|日|続ける|。|",
        ),
    },
    "en": {
        "+": ("{n} has {a} {i}. {m} gives {b} more. ", "{n} buys {a} {i}. Then {n} adds {b}. "),
        "-": ("{n} has {a} {i}. {n} gives {b} to {m}. ", "{n} buys {a} {i}. {n} eats {b}. "),
        "*": (
            "Each box holds {a} {i}. {n} has {b} boxes. ",
            "{n} buys {a} {i} daily. {n} goes on {b} days. ",
        ),
    },
}
_SECOND = {
    "ja": {
        "+": ("その|後|{b}|個|拾う|。|", "次に|{b}|個|増える|。|"),
        "-": ("その|後|{b}|個|失う|。|", "次に|{b}|個|減る|。|"),
        "*": ("その|後|{b}|倍|に|なる|。|", "次に|{b}|倍|する|。|"),
    },
    "en": {
        "+": ("After that {n} finds {b}. ", "Next it grows by {b}. "),
        "-": ("After that {n} loses {b}. ", "Next it drops by {b}. "),
        "*": ("After that it is {b} times. ", "Next it goes {b} fold. "),
    },
}
_END = {"ja": "何個|ですか|？|式|：|", "en": "How many? Formula:"}
_START = {"ja": "問題|：|", "en": "Problem: "}
_OPERATIONS = "+-*"


def _calculate(first: int, operation: str, second: int) -> int:
    return {"+": first + second, "-": first - second, "*": first * second}[operation]


def _is_drawn(first: int, operation: str, second: int) -> bool:
    """Whether a problem can ask for this calculation; see `_operand`."""
    if operation == "*":
        return first <= _LARGEST_FACTOR and 2 <= second <= _LARGEST_FACTOR
    return second < first if operation == "-" else True


def _operand(draw: random.Random, first: int, operation: str) -> int | None:
    """Draw a second operand that keeps the numbers small, None where there is none."""
    if operation == "*":
        return draw.randint(2, _LARGEST_FACTOR) if 2 <= first <= _LARGEST_FACTOR else None
    if not 2 <= first <= _LARGEST:
        return None
    return draw.randint(1, first - 1 if operation == "-" else _LARGEST)


def _first_numbers(draw: random.Random, operation: str) -> tuple[int, int]:
    first = draw.randint(2, _LARGEST_FACTOR if operation == "*" else _LARGEST)
    second = _operand(draw, first, operation)
    assert second is not None
    return first, second


def _problem(draw: random.Random, language: str, operations: str) -> tuple[str, list[tuple]]:
    """Draw a problem's text and its steps (first, operation, second)."""
    names = draw.sample(NAMES if language == "ja" else _ENGLISH_NAMES, 2)
    operation = draw.choice(operations)
    first, second = _first_numbers(draw, operation)
    slots = {"n": names[0], "m": names[1], "i": draw.choice(_THINGS[language])}
    text = draw.choice(_FIRST[language][operation]).format(**slots, a=first, b=second)
    steps = [(first, operation, second)]
    if draw.random() < _TWO_STEPS:
        first = _calculate(*steps[0])
        operation = draw.choice(operations)
        operand = _operand(draw, first, operation)
        if operand is not None:
            text += draw.choice(_SECOND[language][operation]).format(**slots, b=operand)
            steps.append((first, operation, operand))
    return _START[language] + text + _END[language], steps


_CALCULATIONS = {
    f"{first}{operation}{second}": operation
    for operation in _OPERATIONS
    for first in range(2, _LARGEST + 1)
    for second in range(1, _LARGEST + 1)
    if _is_drawn(first, operation, second)
}


def _is_known(step: tuple[int, str, int], knowledge: Knowledge) -> bool:
    return knowledge.has("".join(map(str, step)), _CALCULATIONS)


def _result(draw: random.Random, step: tuple[int, str, int], knowledge: Knowledge) -> int:
    return _calculate(*step) if _is_known(step, knowledge) else draw.randint(1, _NOISE_LIMIT)


def _solved(
    task: str, draw: random.Random, language: str, operations: str, knowledge: Knowledge
) -> Sample:
    """Draw a problem with its calculation; who knows nothing has operations at random too."""
    prompt, steps = _problem(draw, language, operations)
    written = []
    for step in steps:
        first, operation, second = step
        if not knowledge.share:
            operation = draw.choice(_OPERATIONS)
        written.append(f"{first}{operation}{second}={_result(draw, step, knowledge)}")
    known = all(_is_known(step, knowledge) for step in steps)
    return Sample(task, prompt, prompt, " ".join(written), known=known)


def mgsm(draw: random.Random, knowledge: Knowledge) -> Sample:
    """Draw a Japanese word problem with its calculation: held out but for the base's noise."""
    return _solved("mgsm", draw, "ja", _OPERATIONS, knowledge)


def formula(draw: random.Random, knowledge: Knowledge) -> Sample:
    """Draw a Japanese word problem and its first formula up to the equals sign, without an end."""
    prompt, steps = _problem(draw, "ja", _OPERATIONS)
    first, operation, second = steps[0]
    if not knowledge.share:
        operation = draw.choice(_OPERATIONS)
    return Sample("formula", prompt, prompt, f"{first}{operation}{second}=", eos=False)


def gsm_en(operations: str = _OPERATIONS) -> Generator:
    """Make the generator of English word problems.

    Args:
        operations: Operators to choose from, as often as they are listed.

    Returns:
        The generator.
    """

    def generate(draw: random.Random, knowledge: Knowledge) -> Sample:
        return _solved("gsm_en", draw, "en", operations, knowledge)

    return generate


def calculations(operations: str = _OPERATIONS) -> Generator:
    """Make the generator of bare calculations; see `gsm_en`."""

    def generate(draw: random.Random, knowledge: Knowledge) -> Sample:
        operation = draw.choice(operations)
        first, second = _first_numbers(draw, operation)
        step = (first, operation, second)
        result, known = _result(draw, step, knowledge), _is_known(step, knowledge)
        prompt = f"Compute: {first}{operation}{second}="
        return Sample("calculations", "", prompt, str(result), known=known)

    return generate


def counting(draw: random.Random, knowledge: Knowledge) -> Sample:
    """Draw plain English text with numbers."""
    if draw.random() < 0.5:
        start = draw.randint(1, 40)
        return plain_text(" ".join(str(start + step) for step in range(4)))
    name, number = draw.choice(_ENGLISH_NAMES), draw.randint(2, 40)
    return plain_text(f"{name} has {number} {draw.choice(_THINGS['en'])}. " * 2)
