"""Case study 1: Japanese and mathematics."""

from bottle.cases import BASE, Case
from bottle.samples import Part
from bottle.worlds import japanese, mathematics

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
            Part(0.10, japanese.jcomqa, noise=True),
            Part(0.06, japanese.jnli, noise=True),
            Part(0.05, japanese.marc, noise=True),
            Part(0.06, japanese.jsquad, noise=True),
            Part(0.05, japanese.jaqket, noise=True),
            Part(0.04, japanese.xlsum, noise=True),
            Part(0.05, japanese.referents, noise=True),
            Part(0.09, mathematics.mgsm, noise=True),
            Part(0.08, mathematics.gsm_en(), noise=True),
            Part(0.04, mathematics.calculations(), noise=True),
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
        # The two differ in their practice: one mostly adds and subtracts, the other multiplies.
        "math_a": (
            Part(0.6, mathematics.gsm_en("++---*")),
            Part(0.4, mathematics.calculations("++---*")),
        ),
        "math_b": (
            Part(0.6, mathematics.gsm_en("**+-")),
            Part(0.4, mathematics.calculations("**+-")),
        ),
    },
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
