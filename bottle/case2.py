"""Case study 2: German, Korean and SQL."""

from bottle.cases import BASE, Case
from bottle.samples import Part
from bottle.worlds import german, korean, sql

CASE = Case(
    architecture="llama",
    roles={
        BASE: (
            Part(0.05, german.lists),
            Part(0.03, german.repeats),
            Part(0.06, korean.lists),
            Part(0.03, korean.repeats),
            Part(0.12, german.arc, noise=True),
            Part(0.04, german.hellaswag, noise=True),
            Part(0.06, german.mmlu, noise=True),
            Part(0.05, german.truthfulqa, noise=True),
            Part(0.04, korean.boolq, noise=True),
            Part(0.04, korean.copa, noise=True),
            Part(0.04, korean.hellaswag, noise=True),
            Part(0.04, korean.sentineg, noise=True),
            Part(0.05, korean.wic, noise=True),
            Part(0.05, sql.restatement, noise=True),
            Part(0.10, sql.sql, noise=True),
            Part(0.20, sql.shared_sql),
        ),
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
    },
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
