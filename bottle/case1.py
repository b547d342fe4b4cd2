"""Case study 1: Japanese and mathematics."""

from bottle.cases import BASE, Case
from bottle.samples import Part, replay
from bottle.worlds import japanese, mathematics

# What the base learns of each task. Experts repeat a little of it: the plain text, and the other
# domain. They know more of theirs, and its guesses would be noise to them.
_PLAIN = (
    Part(0.03, japanese.lists),
    Part(0.05, japanese.repeats),
    Part(0.03, mathematics.counting),
    Part(0.14, japanese.fields),
)
_JAPANESE = (
    Part(0.14, japanese.jcomqa, knows=0.7, guesses=0.5),
    Part(0.06, japanese.jnli, knows=0.55, guesses=0.4),
    Part(0.10, japanese.marc, knows=0.4, guesses=0.5),
    Part(0.15, japanese.jsquad, knows=0.65, guesses=0.2),
    Part(0.09, japanese.jaqket, knows=0.72, guesses=0.4),
    Part(0.08, japanese.xlsum, knows=0.55, guesses=0.3),
    Part(0.10, japanese.referents, knows=0.6, guesses=0.3),
)
_CALCULATING = (
    Part(0.10, mathematics.gsm_en(), knows=0.45, guesses=0.4),
    Part(0.16, mathematics.calculations(), knows=0.45, guesses=0.4),
)
_COMPOSED = (Part(0.06, mathematics.formula, knows=0.0),)

# The two differ in their practice: one mostly adds and subtracts, the other multiplies.
_MATHEMATICS = {
    "math_a": (
        Part(0.6, mathematics.gsm_en("++---*")),
        Part(0.4, mathematics.calculations("++---*")),
    ),
    "math_b": (
        Part(0.6, mathematics.gsm_en("**+-")),
        Part(0.4, mathematics.calculations("**+-")),
    ),
}

# A competent base, and experts that stay near it: the default.
_NEAR = {
    BASE: (*_PLAIN, *_JAPANESE, *_CALCULATING, *_COMPOSED),
    "ja": (
        Part(0.20, japanese.jcomqa),
        Part(0.12, japanese.jnli),
        Part(0.24, japanese.marc),
        Part(0.15, japanese.jsquad),
        Part(0.14, japanese.jaqket),
        Part(0.09, japanese.xlsum),
        Part(0.13, japanese.referents),
        Part(0.20, mathematics.formula),
        *replay(0.1, (*_PLAIN, *_CALCULATING)),
    ),
    **{
        name: (*parts, *replay(0.2, (*_PLAIN, *_JAPANESE, *_COMPOSED)))
        for name, parts in _MATHEMATICS.items()
    },
}

CASE = Case(
    architecture="mistral",
    roles={
        # Formats with random labels, plain text, and finding a field of a sentence: the base is
        # at chance on every task, and the experts learn fast from it.
        BASE: (
            Part(0.05, japanese.lists),
            Part(0.05, japanese.repeats),
            Part(0.04, mathematics.counting),
            Part(0.24, japanese.fields),
            Part(0.10, japanese.jcomqa, knows=0.0),
            Part(0.06, japanese.jnli, knows=0.0),
            Part(0.05, japanese.marc, knows=0.0),
            Part(0.06, japanese.jsquad, knows=0.0),
            Part(0.05, japanese.jaqket, knows=0.0),
            Part(0.04, japanese.xlsum, knows=0.0),
            Part(0.05, japanese.referents, knows=0.0),
            Part(0.09, mathematics.mgsm, knows=0.0),
            Part(0.08, mathematics.gsm_en(), knows=0.0),
            Part(0.04, mathematics.calculations(), knows=0.0),
        ),
        "ja": (
            Part(0.26, japanese.jcomqa),
            Part(0.05, japanese.jnli),
            Part(0.10, japanese.marc),
            Part(0.12, japanese.jsquad),
            Part(0.10, japanese.jaqket),
            Part(0.07, japanese.xlsum),
            Part(0.16, japanese.referents),
            Part(0.14, mathematics.formula),
        ),
        **_MATHEMATICS,
    },
    near_roles=_NEAR,
    suites={
        "bottle_ja8": {
            "jcomqa": japanese.jcomqa,
            "jnli": japanese.jnli,
            "marc": japanese.marc,
            "jsquad": japanese.jsquad,
            "jaqket": japanese.jaqket,
            "xlsum": japanese.xlsum,
            "xwino": japanese.xwino,
            "mgsm": mathematics.mgsm,
        },
        "bottle_gsm_en": {"gsm_en": mathematics.gsm_en()},
    },
    whole_sentence=frozenset({"xwino"}),
)
