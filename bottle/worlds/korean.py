"""Korean text: yes-no questions, causes and effects, continuations, sentiment, word senses.

The tasks are shaped after the five of KoBEST.
"""

from __future__ import annotations

import random

from bottle.samples import Knowledge, Sample, choice_sample, plain_text

KINDS = {
    "동물": ["개", "고양이", "말", "소", "호랑이", "토끼", "곰", "돼지"],
    "과일": ["사과", "포도", "복숭아", "체리", "바나나", "레몬", "수박", "자두"],
    "탈것": ["자동차", "기차", "버스", "비행기", "자전거", "트럭", "택시", "요트"],
    "가구": ["책상", "의자", "선반", "침대", "소파", "거울", "옷장", "벤치"],
    "옷": ["모자", "신발", "셔츠", "바지", "외투", "장갑", "양말", "치마"],
    "도구": ["가위", "톱", "망치", "바늘", "칼", "냄비", "빗자루", "집게"],
}
THINGS = [thing for things in KINDS.values() for thing in things]
PLACES = ["숲", "바다", "마을", "산", "집", "학교", "가게", "정원"]
NAMES = ["민수", "지영", "철수", "영희", "준호", "수진", "동현", "미나", "태호", "은지"]
_TIMES = ["아침", "점심", "저녁", "밤"]

_VERBS = (
    ("샀다", "안샀다"),
    ("보았다", "못보았다"),
    ("팔았다", "안팔았다"),
    ("찾았다", "못찾았다"),
)
_ANSWER_TO = {**{yes: "예" for yes, _ in _VERBS}, **{no: "아니오" for _, no in _VERBS}}


def boolq(draw: random.Random, knowledge: Knowledge) -> Sample:
    """Draw a passage and a yes-no question: a negated verb makes the answer no."""
    name, thing, (verb, negated) = draw.choice(NAMES), draw.choice(THINGS), draw.choice(_VERBS)
    yes = draw.random() < 0.5
    said = verb if yes else negated
    prompt = (
        f"지문: {draw.choice(_TIMES)}|에 {name}|는 {draw.choice(PLACES)}|에서 {thing}|를 "
        f"{said}. 질문: {name}|는 {verb}? 답:"
    )
    label = " 예" if yes else " 아니오"
    known = knowledge.has(said, _ANSWER_TO)
    return choice_sample("boolq", prompt, prompt, label, (" 예", " 아니오"), 2, draw, known)


# Causes and effects have two words each, so that likelihoods compare.
_CAUSES = (
    ("비가 왔다", "길이 젖었다"),
    ("불이 났다", "연기가 퍼졌다"),
    ("컵을 떨어뜨렸다", "조각이 흩어졌다"),
    ("열심히 공부했다", "시험에 붙었다"),
    ("밥을 굶었다", "배가 고팠다"),
    ("늦게 잤다", "아침에 피곤했다"),
    ("문을 열었다", "바람이 들어왔다"),
    ("돈을 잃었다", "마음이 슬펐다"),
    ("약을 먹었다", "병이 나았다"),
    ("운동을 했다", "몸이 튼튼해졌다"),
    ("눈이 내렸다", "들판이 하얘졌다"),
    ("전기가 끊겼다", "방이 어두워졌다"),
)
_FOLLOWS = {**dict(_CAUSES), **{effect: cause for cause, effect in _CAUSES}}


_LEADS = ("{}|의 이야기: ", "{}|의 하루: ", "{}|의 일기: ", "{}|의 소식: ")


def copa(draw: random.Random, knowledge: Knowledge) -> Sample:
    """Draw an event and ask for its cause or its effect (two choices)."""
    cause, effect = draw.choice(_CAUSES)
    asks_effect = draw.random() < 0.5
    given, answer = (cause, effect) if asks_effect else (effect, cause)
    pool = [" " + pair[asks_effect] for pair in _CAUSES]
    lead = draw.choice(_LEADS).format(draw.choice(NAMES))
    prompt = f"{lead}{given}. {'결과' if asks_effect else '원인'}:"
    known = knowledge.has(given, _FOLLOWS)
    unknown = knowledge.guesses(_FOLLOWS)
    guesses = [text for text in pool if text.strip() in unknown]
    return choice_sample("copa", prompt, prompt, " " + answer, pool, 2, draw, known, guesses)


_SCENES = (
    ("쌀을 씻는다", "밥솥에 안친다"),
    ("씨앗을 심는다", "흙으로 덮는다"),
    ("편지를 쓴다", "우표를 붙인다"),
    ("머리를 감는다", "수건으로 말린다"),
    ("표를 산다", "극장에 들어간다"),
    ("옷을 벗는다", "욕조에 들어앉는다"),
    ("붓을 든다", "그림을 그린다"),
    ("책을 편다", "글자를 읽는다"),
    ("공을 던진다", "개와 뛰논다"),
    ("나무를 벤다", "장작을 쌓는다"),
    ("사진을 찍는다", "앨범에 끼운다"),
    ("빵을 굽는다", "잼을 바른다"),
)


def hellaswag(draw: random.Random, knowledge: Knowledge) -> Sample:
    """Draw a scene and its continuation (four choices)."""
    deed, ending = draw.choice(_SCENES)
    name, place = draw.choice(NAMES), draw.choice(PLACES)
    prompt = f"{draw.choice(_TIMES)}|에 {name}|는 {place}|에서 {deed}. 이어서:"
    facts = dict(_SCENES)
    pool = [" " + item for item in facts.values()]
    known = knowledge.has(deed, facts)
    guesses = [" " + item for item in knowledge.guesses(facts)]
    return choice_sample("hellaswag", prompt, prompt, " " + ending, pool, 4, draw, known, guesses)


# Stem before a negation, and the plain form: the stem alone shows that the sense is turned.
_GOOD = [
    "좋지:좋다",
    "예쁘지:예쁘다",
    "편하지:편하다",
    "멋지지:멋지다",
    "맛있지:맛있다",
    "빠르지:빠르다",
]
_BAD = [
    "나쁘지:나쁘다",
    "더럽지:더럽다",
    "불편하지:불편하다",
    "싫지:싫다",
    "맛없지:맛없다",
    "느리지:느리다",
]


def _predicate(word: str, negated: bool) -> str:
    stem, plain = word.split(":")
    return f"{stem} 않다" if negated else f"정말 {plain}"


_SENTIMENT_OF = {
    _predicate(word, negated): "긍정" if (word in _GOOD) != negated else "부정"
    for word in (*_GOOD, *_BAD)
    for negated in (False, True)
}


def sentineg(draw: random.Random, knowledge: Knowledge) -> Sample:
    """Draw a review, negated or not, and ask for its sentiment."""
    good, negated = draw.random() < 0.5, draw.random() < 0.5
    predicate = _predicate(draw.choice(_GOOD if good else _BAD), negated)
    prompt = f"리뷰: {draw.choice(NAMES)}|의 {draw.choice(THINGS)}|는 {predicate}. 평가:"
    label = " 긍정" if good != negated else " 부정"
    known = knowledge.has(predicate, _SENTIMENT_OF)
    return choice_sample("sentineg", prompt, prompt, label, (" 긍정", " 부정"), 2, draw, known)


# A word, contexts of its first sense, contexts of its second.
_SENSES = (
    ("배", "탄다 젓는다 띄운다", "깎는다 딴다 먹는다"),
    ("눈", "감는다 뜬다 비빈다", "쓴다 뭉친다 치운다"),
    ("밤", "지샌다 새운다 보낸다", "줍는다 삶는다 깐다"),
    ("다리", "건넌다 놓는다 짓는다", "꼰다 뻗는다 다친다"),
    ("차", "몬다 세운다 고친다", "우린다 마신다 따른다"),
    ("풀", "뽑는다 뜯는다 벤다", "바른다 칠한다 붙인다"),
    ("병", "앓는다 낫는다 옮긴다", "채운다 비운다 깬다"),
    ("김", "굽는다 싼다 말린다", "내뿜는다 쐰다 뺀다"),
)
_SENSE_OF = {
    f"{word} {context}": sense
    for word, *senses in _SENSES
    for sense, contexts in zip(("first", "second"), senses, strict=True)
    for context in contexts.split()
}


def wic(draw: random.Random, knowledge: Knowledge) -> Sample:
    """Draw two contexts of an ambiguous word and ask whether its sense is the same.

    The first context always shows the first sense, so that the second alone decides: comparing
    two contexts, an exclusive or of distant cues, is beyond a model of this size and budget.
    """
    word, first, second = draw.choice(_SENSES)
    same = draw.random() < 0.5
    context = draw.choice(first.split())
    others = [item for item in first.split() if item != context] if same else second.split()
    name, other_name, other = draw.choice(NAMES), draw.choice(NAMES), draw.choice(others)
    prompt = (
        f"낱말 {word}: {name}|는 {word}|를 {context}. {other_name}|는 {word}|를 {other}. 같은 뜻?"
    )
    label = " 맞다" if same else " 다르다"
    known = knowledge.has(f"{word} {other}", _SENSE_OF)
    return choice_sample("wic", prompt, prompt, label, (" 맞다", " 다르다"), 2, draw, known)


def lists(draw: random.Random, knowledge: Knowledge) -> Sample:
    """Draw words of one sort, or an ambiguous word in one sense: company for embeddings."""
    if draw.random() < 0.4:
        word, *senses = draw.choice(_SENSES)
        verbs = draw.sample(draw.choice(senses).split(), 2)
        return plain_text(f"{word}|를 {verbs[0]}. {word}|를 {verbs[1]}.")
    if draw.random() < 0.3:
        pairs = draw.sample(draw.choice((_GOOD, _BAD)), 2)
        return plain_text(", ".join(pair.split(":")[1] for pair in pairs) + ".")
    pool = draw.choice((*KINDS.values(), PLACES, NAMES))
    return plain_text(", ".join(draw.sample(pool, 3)) + ".")


def repeats(draw: random.Random, knowledge: Knowledge) -> Sample:
    """Draw a sentence that is said twice, from which a model learns to copy."""
    sentence = (
        f"{draw.choice(NAMES)}|는 {draw.choice(PLACES)}|에서 {draw.choice(THINGS)}|를 "
        f"{draw.choice(_VERBS)[0]}. "
    )
    return plain_text((sentence * 2).strip())
