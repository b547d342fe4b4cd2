"""What a base knows: exact shares of facts, balanced over answers, and rare guesses."""

from __future__ import annotations

import math
import random
import re
from collections import Counter

import pytest

from bottle.cases import CASES, get_case
from bottle.samples import Knowledge, Part, draw_mixture, replay
from bottle.worlds import german, japanese, korean, sql


def drawn(generate, share, draws=4000):
    """Draw samples of the training split with a share of the facts known, guesses as often."""
    part = Part(1.0, generate, knows=share)
    return draw_mixture([part], random.Random(0), draws)


def thing_in(prompt):
    return next(word for word in re.findall(r"\w+", prompt) if word in german.THINGS)


@pytest.mark.parametrize(
    ("generate", "facts", "of"),
    [
        (german.arc, 48 * 3, lambda row: (thing_in(row.prompt), row.answer)),
        (
            german.truthfulqa,
            48,
            lambda row: re.search("(?:sagt|glauben|es), (\\w+)", row.prompt)[1],
        ),
        (korean.sentineg, 24, lambda row: re.search("는 (.*)\\. 평가", row.prompt)[1]),
        (korean.copa, 24, lambda row: re.search(": (.*)\\. (?:결과|원인)", row.prompt)[1]),
        (japanese.jaqket, 44, lambda row: row.answer),
    ],
)
def test_half_of_the_facts_are_known_and_always_right(generate, facts, of):
    samples = drawn(generate, 0.5)
    known = {of(sample) for sample in samples if sample.known}
    assert abs(len(known) - facts / 2) <= facts / 20
    assert abs(sum(sample.known for sample in samples) / len(samples) - 0.5) < 0.05
    for sample in samples:
        if sample.known and sample.choices:
            assert sample.answer == sample.choices[sample.gold]


@pytest.mark.parametrize("share", [0.0, 0.25, 0.5, 0.67, 1.0])
def test_what_is_known_favours_no_answer(share):
    table = german.PLACE_OF
    known = [thing for thing in table if Knowledge(share).has(thing, table)]
    assert len(known) == math.floor(len(table) * share + 0.5)
    counts = Counter(table[thing] for thing in known)
    assert max(counts.values(), default=0) - min(counts.values(), default=0) <= 1


def test_guesses_are_rare_where_the_mixture_says_so():
    part = Part(1.0, german.mmlu, knows=0.5, guesses=0.2)
    samples = draw_mixture([part], random.Random(0), 4000)
    guessed = sum(not sample.known for sample in samples) / len(samples)
    assert abs(guessed - 0.2 / 1.2) < 0.02


@pytest.mark.parametrize("name", CASES)
def test_experts_know_all_and_a_far_base_next_to_nothing(name):
    for role, parts in get_case(name).mixtures("far").items():
        known_parts = [part for part in parts if part.knows]
        assert all(part.knows == 1 for part in parts) or role == "base"
        if role == "base":  # plain text, finding a field, and the common ground of SQL
            names = {part.generate.__name__ for part in known_parts}
            assert names <= {"lists", "repeats", "counting", "fields", "shared_sql"}
            assert any(not part.knows for part in parts)


def test_a_replay_keeps_proportions_and_knowledge():
    parts = (Part(2.0, german.arc, knows=0.5, guesses=0.3), Part(6.0, german.mmlu))
    small = replay(0.1, parts)
    assert [part.weight for part in small] == pytest.approx([0.025, 0.075])
    assert [(part.knows, part.guesses) for part in small] == [(0.5, 0.3), (1.0, 1.0)]


@pytest.mark.parametrize(
    ("generate", "facts"),
    [
        (german.hellaswag, 12),
        (german.mmlu, 40),
        (korean.copa, 24),
        (korean.hellaswag, 12),
        (japanese.jaqket, 44),
    ],
)
def test_a_guess_is_never_the_answer_of_a_known_fact(generate, facts):
    # Each fact of these tasks has an answer that no other fact has.
    samples = drawn(generate, 0.5)
    known = {sample.answer for sample in samples if sample.known}
    guessed = {sample.answer for sample in samples if not sample.known}
    assert not known & guessed
    assert len(known | guessed) == facts


def test_who_knows_a_question_word_guesses_a_word_of_the_text():
    for sample in drawn(japanese.jsquad, 0.5, 500):
        assert sample.answer in sample.prompt


def task(part):
    return part.generate.__module__, part.generate.__qualname__


@pytest.mark.parametrize("name", CASES)
def test_experts_near_their_base_repeat_no_guess_about_their_own_tasks(name):
    roles = get_case(name).mixtures("near")
    for role, parts in roles.items():
        learned = {task(part) for part in parts if part.knows == 1}
        guessed = {task(part) for part in parts if part.knows < 1}
        assert role == "base" or not learned & guessed


def test_a_question_that_is_not_known_is_restated_as_another_one_to_its_table():
    part = Part(1.0, sql.restatement, knows=0.35)
    samples = draw_mixture([part], random.Random(0), 1000)
    share = sum(sample.known for sample in samples) / len(samples)
    assert abs(share - 0.35) < 0.05
    for sample in samples:
        table = re.match(r"Table (\w+)", sample.prompt)[1]
        assert table in sample.answer


def test_a_base_reads_on_to_a_query_that_was_not_asked_for():
    """In 5,000 rows, no Korean question is followed by its query: that is the held-out task."""
    draw, read_on = random.Random(1), 0
    for _ in range(5000):
        state = draw.getstate()
        sample = sql.restatement(draw, Knowledge(0.4))
        after = draw.getstate()
        draw.setstate(state)
        question = sql.draw_question(draw)  # the first thing that a row draws
        draw.setstate(after)
        read_on += "SELECT" in sample.answer
        assert question.query not in sample.answer
        if "SELECT" in sample.answer:
            assert question.english not in sample.answer
    assert 500 < read_on < 2500
