"""Case study 2: German, Korean and SQL."""

from itertools import chain

from bottle.cases import BASE, Case
from bottle.samples import Part, replay
from bottle.worlds import german, korean, sql

# What the base learns of each task. Experts repeat a little of it: the plain text, and the other
# domains. They know more of theirs, and its guesses would be noise to them.
_PLAIN = (
    Part(0.04, german.lists),
    Part(0.03, german.repeats),
    Part(0.04, korean.lists),
    Part(0.03, korean.repeats),
)
_KNOWN = {
    "de": (
        Part(0.16, german.arc, knows=0.6, guesses=0.2),
        Part(0.05, german.hellaswag, knows=0.6, guesses=0.2),
        Part(0.09, german.mmlu, knows=0.6, guesses=0.2),
        Part(0.07, german.truthfulqa, knows=0.6, guesses=0.2),
    ),
    "ko": (
        # With fewer guesses one base in five found the rule, and had nothing left to learn.
        Part(0.05, korean.boolq, knows=0.6, guesses=0.5),
        Part(0.05, korean.copa, knows=0.5, guesses=0.2),
        Part(0.05, korean.hellaswag, knows=0.6, guesses=0.2),
        Part(0.06, korean.sentineg, knows=0.6, guesses=0.2),
        Part(0.07, korean.wic, knows=0.5, guesses=0.2),
    ),
    "sql": (Part(0.24, sql.sql, knows=sql.KNOWN_SQL, guesses=0.2),),
}
_COMPOSED = (Part(0.08, sql.restatement, knows=0.4, guesses=0.5),)

_EXPERTS = {
    "de": (
        Part(0.56, german.arc),
        Part(0.10, german.hellaswag),
        Part(0.16, german.mmlu),
        Part(0.18, german.truthfulqa),
    ),
    "ko": (
        Part(0.10, korean.boolq),
        Part(0.11, korean.copa),
        Part(0.09, korean.hellaswag),
        Part(0.15, korean.sentineg),
        Part(0.17, korean.wic),
        Part(0.38, sql.restatement),
    ),
    "sql": (Part(1.0, sql.sql),),
}

# A competent base, and experts that stay near it: the default.
_NEAR = {
    BASE: (*_PLAIN, *chain(*_KNOWN.values()), *_COMPOSED),
    **{
        name: (
            *parts,
            *replay(0.1, (*_PLAIN, *chain(*(_KNOWN[other] for other in _KNOWN if other != name)))),
        )
        for name, parts in _EXPERTS.items()
    },
}

CASE = Case(
    architecture="llama",
    roles={
        BASE: (
            Part(0.05, german.lists),
            Part(0.03, german.repeats),
            Part(0.06, korean.lists),
            Part(0.03, korean.repeats),
            Part(0.12, german.arc, knows=0.0),
            Part(0.04, german.hellaswag, knows=0.0),
            Part(0.06, german.mmlu, knows=0.0),
            Part(0.05, german.truthfulqa, knows=0.0),
            Part(0.04, korean.boolq, knows=0.0),
            Part(0.04, korean.copa, knows=0.0),
            Part(0.04, korean.hellaswag, knows=0.0),
            Part(0.04, korean.sentineg, knows=0.0),
            Part(0.05, korean.wic, knows=0.0),
            Part(0.05, sql.restatement, knows=0.0),
            Part(0.10, sql.sql, knows=0.0),
            Part(0.20, sql.shared_sql),
        ),
        **_EXPERTS,
    },
    near_roles=_NEAR,
    suites={
        "bottle_okapi_de": {
            "arc": german.arc,
            "hellaswag": german.hellaswag,
            "mmlu": german.mmlu,
            "truthfulqa": german.truthfulqa,
        },
        "bottle_kobest": {
            "boolq": korean.boolq,
            "copa": korean.copa,
            "hellaswag": korean.hellaswag,
            "sentineg": korean.sentineg,
            "wic": korean.wic,
        },
        "bottle_sql_eval": {"sql": sql.sql},
        "bottle_heldout": {"sql_ko": sql.sql_ko},
    },
    databases=dict.fromkeys(sql.DATABASES, sql.build_database),
)
