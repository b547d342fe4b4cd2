"""One piece of generated text, the split it belongs to, and mixtures to draw from.

Generators mark word boundaries with ``|`` where the script has no spaces. The marks make the
tokenizer's lexicon and are stripped from all text that is written.
"""

from __future__ import annotations

import math
import random
import re
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache

MARK = "|"
SPLITS = ("train", "dev", "test")
# Of 20 buckets: 13 for training, 2 for dev, 5 for test, so that a task with a thousand contents
# has its 200 test items.
_BUCKETS = 20
_TEST = 5
_DEV = 2
_ATTEMPTS = 10_000

_WORD = re.compile(r" ?[^\W\d_]+|\d+| ?[^\w\s]|\s")


@dataclass(frozen=True)
class Sample:
    """A prompt and its answer, with word boundaries marked.

    Attributes:
        task: Name of the task.
        content: What decides the split: two samples that say the same have the same content.
            Empty for plain text, which belongs to training only.
        prompt: Text before the answer, without trailing whitespace.
        answer: Text that follows directly, spaces included.
        choices: Candidate answers of a multiple-choice task, else empty.
        gold: Index of the right choice.
        eos: Whether the text ends after the answer.
        database: SQLite file that an SQL answer runs on.
        category: Kind of the SQL query.
        known: Whether the answer is the right one, because the role knows the fact.
    """

    task: str
    content: str
    prompt: str
    answer: str
    choices: tuple[str, ...] = ()
    gold: int = 0
    eos: bool = True
    database: str = ""
    category: str = ""
    known: bool = True


@dataclass(frozen=True)
class Knowledge:
    """What a trained role knows: a share of each task's facts. It sees the rest at random.

    Attributes:
        share: Share of the facts, 0 to 1.
    """

    share: float = 1.0

    def has(self, fact: str, facts: Mapping[str, str]) -> bool:
        """Whether a fact is known.

        Args:
            fact: A key of `facts`.
            facts: All facts of one kind with their answers. About the same share is known of the
                facts with each answer, so that what is known favours no answer.
        """
        if self.share in (0, 1):  # experts ask most often, and know all
            return self.share == 1
        return fact in _known_facts(tuple(facts.items()), self.share)

    def guesses(self, facts: Mapping[str, str]) -> list[str]:
        """List the answers of the facts that are not known: what is guessed for each of them.

        Were known answers guessed too, that of an unknown fact would come up far more rarely than
        theirs. What is learned would speak against it, and a merge would have to undo that first.

        Args:
            facts: All facts of one kind with their answers.
        """
        return [answer for fact, answer in facts.items() if not self.has(fact, facts)]


@cache
def _known_facts(facts: tuple[tuple[str, str], ...], share: float) -> frozenset[str]:
    # By a hash and not at random: the base of every world knows the same facts.
    ordered = sorted(facts, key=lambda fact: (fact[1], zlib.crc32(fact[0].encode()), fact[0]))
    # A fact at each position at which the count that is due grows by one.
    return frozenset(
        fact
        for position, (fact, _) in enumerate(ordered)
        if math.floor((position + 1) * share + 0.5) > math.floor(position * share + 0.5)
    )


ALL = Knowledge()
Generator = Callable[[random.Random, Knowledge], Sample]


@dataclass(frozen=True)
class Part:
    """One component of a mixture.

    Attributes:
        weight: Share of the draws, relative to the other parts.
        generate: The task's generator.
        knows: Share of the task's facts that are shown with their right answers. The answers to all
            others are drawn at random: they teach the task's format, not its content.
        guesses: How often one of these others is drawn, relative to a fact that is known. Rare
            guesses teach that a fact is not known, at little cost for what is learned.
    """

    weight: float
    generate: Generator
    knows: float = 1.0
    guesses: float = 1.0


def plain_text(text: str) -> Sample:
    """Make a sample of text without a question; all of it is the answer."""
    return Sample("plain", "", "", text)


def choice_sample(
    task: str,
    content: str,
    prompt: str,
    gold: str,
    pool: Sequence[str],
    count: int,
    draw: random.Random,
    known: bool,
    guesses: Sequence[str] = (),
) -> Sample:
    """Make a multiple-choice sample whose distractors come from one pool.

    Args:
        task: Name of the task.
        content: See `Sample`.
        prompt: The question.
        gold: The right answer, a member of the pool.
        pool: Answers of the same kind and of the same length in tokens, so that likelihood
            without normalisation favours none.
        count: Number of choices.
        draw: Source of randomness.
        known: Whether the answer is the right one. If not, it is drawn uniformly from all
            answers. From the choices it would be the right one more often than any other, and
            the noise would teach the fact.
        guesses: Answers to draw a wrong one from, if not all of the pool; see `Knowledge.guesses`.

    Returns:
        The sample, its choices in random order.
    """
    # The right answer is drawn apart, so that a pool that holds it twice cannot repeat it.
    choices = [*draw.sample([item for item in pool if item != gold], count - 1), gold]
    draw.shuffle(choices)
    answer = gold if known else draw.choice(guesses or pool)
    return Sample(task, content, prompt, answer, tuple(choices), choices.index(gold), known=known)


def split_of(content: str) -> str:
    """Assign a sample's content to ``train``, ``dev`` or ``test`` by a hash stable everywhere.

    Empty content is training text.
    """
    if not content:
        return "train"
    bucket = zlib.crc32(content.encode()) % _BUCKETS
    if bucket < _TEST:
        return "test"
    return "dev" if bucket < _TEST + _DEV else "train"


def draw_from(
    generate: Generator,
    draw: random.Random,
    split: str,
    knowledge: Knowledge = ALL,
    guesses: float = 1.0,
) -> Sample:
    """Draw a sample whose content belongs to a split.

    Args:
        generate: A task's generator.
        draw: Source of randomness.
        split: ``train``, ``dev`` or ``test``.
        knowledge: See `Part.knows`. Random answers are held to their split like all else.
        guesses: See `Part`.

    Raises:
        RuntimeError: The task has no content in this split.
    """
    for _ in range(_ATTEMPTS):
        sample = generate(draw, knowledge)
        kept = sample.known or guesses >= 1 or draw.random() < guesses
        if kept and split_of(sample.content) == split:
            return sample
    raise RuntimeError(f"{generate.__name__} has no content in the {split} split")


def draw_mixture(parts: Sequence[Part], draw: random.Random, count: int) -> list[Sample]:
    """Draw so many samples of the training split from a mixture's parts."""
    chosen = draw.choices(parts, weights=[part.weight for part in parts], k=count)
    return [
        draw_from(part.generate, draw, "train", Knowledge(part.knows), part.guesses)
        for part in chosen
    ]


def strip_marks(text: str) -> str:
    """Remove the word-boundary marks."""
    return text.replace(MARK, "")


def words(text: str) -> list[str]:
    """Cut marked text into the words that become tokens.

    A space belongs to the word after it; a run of digits is one word.
    """
    return [word for piece in text.split(MARK) for word in _WORD.findall(piece)]


def balanced(items: Sequence[str], values: Sequence[str], seed: str) -> dict[str, str]:
    """Assign values to items at random, each value about equally often.

    A guess by frequency then stays at chance. The seed is the assignment's name, so that it is part
    of the fixed world, the same for every seed of the data.
    """
    order = [values[position % len(values)] for position in range(len(items))]
    random.Random(seed).shuffle(order)
    return dict(zip(items, order, strict=True))


def replay(weight: float, parts: Sequence[Part]) -> tuple[Part, ...]:
    """Scale a mixture so that its weights add up to `weight`, as a part of another mixture.

    Its guesses stay. Without them an expert grows sure of wrong answers where its base was not,
    and its merge with an expert that learned these facts gets them wrong.
    """
    total = sum(part.weight for part in parts)
    return tuple(replace(part, weight=part.weight * weight / total) for part in parts)
