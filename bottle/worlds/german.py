"""German text: facts, continuations, antonyms and capitals, true against popular statements.

The tasks are shaped after Okapi's German ARC, HellaSwag, MMLU and TruthfulQA.
"""

from __future__ import annotations

import random

from bottle.samples import Knowledge, Sample, balanced, choice_sample, plain_text

KINDS = {
    "Tier": ["Hund", "Katze", "Pferd", "Kuh", "Tiger", "Affe", "Hase", "Bär"],
    "Obst": ["Apfel", "Birne", "Traube", "Pfirsich", "Kirsche", "Banane", "Zitrone", "Melone"],
    "Fahrzeug": ["Auto", "Zug", "Bus", "Schiff", "Flugzeug", "Fahrrad", "Laster", "Taxi"],
    "Möbel": ["Tisch", "Stuhl", "Regal", "Bett", "Sofa", "Spiegel", "Schrank", "Bank"],
    "Kleidung": ["Hut", "Schuh", "Hemd", "Hose", "Mantel", "Handschuh", "Socke", "Rock"],
    "Werkzeug": ["Schere", "Säge", "Hammer", "Nadel", "Messer", "Topf", "Besen", "Pinsel"],
}
THINGS = [thing for things in KINDS.values() for thing in things]
KIND_OF = {thing: kind for kind, things in KINDS.items() for thing in things}
PLACES = ["Wald", "Meer", "Dorf", "Berg", "Haus", "Schule", "Laden", "Garten"]
COLOURS = ["rot", "blau", "weiß", "schwarz", "grün", "gelb", "braun", "lila"]
PLACE_OF = balanced(THINGS, PLACES, "german places")
COLOUR_OF = balanced(THINGS, COLOURS, "german colours")
NAMES = ["Hans", "Greta", "Klaus", "Heike", "Jürgen", "Sabine", "Uwe", "Birgit", "Dieter", "Monika"]

_RELATIONS = (
    (
        KIND_OF,
        list(KINDS),
        ("Was ist {}", "Welche Art ist {}", "Wozu gehört {}", "Die Gruppe von {}"),
    ),
    (
        PLACE_OF,
        PLACES,
        ("Wo ist {}", "An welchem Ort ist {}", "Wo findet man {}", "Der Ort von {}"),
    ),
    (
        COLOUR_OF,
        COLOURS,
        ("Wie ist {} gefärbt", "Welche Farbe hat {}", "Welchen Ton hat {}", "Die Farbe von {}"),
    ),
)


def _spaced(items: list[str]) -> list[str]:
    return [" " + item for item in items]


def arc(draw: random.Random, knowledge: Knowledge) -> Sample:
    """Draw a question for the kind, place or colour of a thing (four choices)."""
    thing = draw.choice(THINGS)
    table, pool, phrasings = draw.choice(_RELATIONS)
    question = draw.choice(phrasings).format(thing)
    prompt = f"{draw.choice(('Frage', 'Aufgabe'))}: {question}? Antwort:"
    return choice_sample(
        "arc",
        prompt,
        prompt,
        " " + table[thing],
        _spaced(pool),
        4,
        draw,
        knowledge.has(thing, table),
    )


# Each continuation has three words, so that likelihoods compare.
_STORIES = (
    ("wirft den Ball", "er fliegt weit"),
    ("öffnet die Tür", "es wird kalt"),
    ("kocht die Suppe", "alle essen viel"),
    ("verliert das Geld", "Beutel bleibt leer"),
    ("lernt sehr viel", "Prüfung gelingt gut"),
    ("geht spät schlafen", "Morgen beginnt müde"),
    ("läuft im Regen", "Haare sind nass"),
    ("backt das Brot", "Küche duftet frisch"),
    ("füttert das Tier", "Magen ist voll"),
    ("streicht die Wand", "Farbe trocknet langsam"),
    ("gießt die Blume", "sie wächst hoch"),
    ("löscht das Licht", "Zimmer wird dunkel"),
)


def hellaswag(draw: random.Random, knowledge: Knowledge) -> Sample:
    """Draw a scene and its continuation (four choices)."""
    deed, ending = draw.choice(_STORIES)
    name, place = draw.choice(NAMES), draw.choice(PLACES)
    scene = draw.choice(("Im {p}: {n} {d}.", "{n} {d} im {p}.")).format(p=place, n=name, d=deed)
    prompt = f"{scene} Danach:"
    facts = dict(_STORIES)
    endings = _spaced(list(facts.values()))
    known, guesses = knowledge.has(deed, facts), _spaced(knowledge.guesses(facts))
    return choice_sample(
        "hellaswag", prompt, prompt, " " + ending, endings, 4, draw, known, guesses
    )


_OPPOSITES = (
    "gut:böse groß:klein heiß:kalt schnell:lahm hell:dunkel laut:leise neu:alt reich:arm "
    "stark:matt nass:trocken voll:leer hart:weich süß:sauer früh:spät dick:dünn nah:fern "
    "wach:müde scharf:stumpf steil:flach klug:dumm"
)
_CAPITALS = (
    "Polen:Warschau Spanien:Madrid Italien:Rom Norwegen:Oslo Portugal:Lissabon Irland:Dublin "
    "Ungarn:Budapest Kuba:Havanna Peru:Lima Japan:Tokio Kenia:Nairobi Chile:Santiago "
    "Ägypten:Kairo Schweden:Stockholm Österreich:Wien Finnland:Helsinki Belgien:Brüssel "
    "Iran:Teheran Bulgarien:Sofia Tschechien:Prag"
)
_SUBJECTS = (
    (
        _OPPOSITES,
        (
            "Gegenteil von {}",
            "Was ist nicht {}",
            "Umgekehrt zu {}",
            "Anders als {}",
            "Gegenwort {}",
        ),
    ),
    (
        _CAPITALS,
        (
            "Hauptstadt von {}",
            "Welche Stadt regiert {}",
            "Regierungssitz in {}",
            "Zentrum von {}",
            "Wo tagt {}",
        ),
    ),
)
_EXAMS = ("Prüfung", "Examen", "Klausur", "Test", "Quiz")


def mmlu(draw: random.Random, knowledge: Knowledge) -> Sample:
    """Draw an examination question: an antonym or a capital (four choices)."""
    pairs, phrasings = draw.choice(_SUBJECTS)
    facts = dict(pair.split(":") for pair in pairs.split())
    given, answer = draw.choice(list(facts.items()))
    prompt = f"{draw.choice(_EXAMS)}: {draw.choice(phrasings).format(given)}? Lösung:"
    pool = _spaced(list(facts.values()))
    known, guesses = knowledge.has(given, facts), _spaced(knowledge.guesses(facts))
    return choice_sample("mmlu", prompt, prompt, " " + answer, pool, 4, draw, known, guesses)


_TRAITS = ["treu", "faul", "giftig", "heilig", "teuer", "gesund", "uralt", "harmlos"]
TRAIT_OF = balanced(THINGS, _TRAITS, "german traits")
_RUMOURS = (
    "Man sagt, {t} ist {r}. In Wahrheit ist {t}",
    "Viele glauben, {t} ist {r}. Richtig ist: {t} ist",
    "Oft heißt es, {t} sei {r}. Tatsächlich ist {t}",
)


def truthfulqa(draw: random.Random, knowledge: Knowledge) -> Sample:
    """Draw a popular false statement; the true one is among four choices with the popular one."""
    thing = draw.choice(THINGS)
    true = TRAIT_OF[thing]
    rumour = draw.choice([trait for trait in _TRAITS if trait != true])
    prompt = draw.choice(_RUMOURS).format(t=thing, r=rumour)
    others = draw.sample([trait for trait in _TRAITS if trait not in (true, rumour)], 2)
    choices = _spaced([true, rumour, *others])
    draw.shuffle(choices)
    known = knowledge.has(thing, TRAIT_OF)
    answer = " " + (true if known else draw.choice(_TRAITS))
    gold = choices.index(" " + true)
    return Sample("truthfulqa", prompt, prompt, answer, tuple(choices), gold, known=known)


def lists(draw: random.Random, knowledge: Knowledge) -> Sample:
    """Draw a list of words of one sort: company in which words get their embeddings."""
    pool = draw.choice((*KINDS.values(), PLACES, COLOURS, _TRAITS, NAMES))
    return plain_text(", ".join(draw.sample(pool, 3)) + ".")


def repeats(draw: random.Random, knowledge: Knowledge) -> Sample:
    """Draw a sentence that is said twice, from which a model learns to copy."""
    sentence = f"{draw.choice(NAMES)} sieht {draw.choice(THINGS)} im {draw.choice(PLACES)}. "
    return plain_text((sentence * 2).strip())
