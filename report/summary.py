"""The page's first words: the question, and the answer in three sentences with intervals."""

from __future__ import annotations

from collections.abc import Mapping

from report.case_table import near_ties, untuned
from report.experiment import Case, Experiment, Model
from report.grid import number, signed
from report.intervals import difference
from report.worlds import gaps

QUESTION = (
    "Which way of merging fine-tuned language models keeps most of its experts' skills, and do "
    "the paper's claims hold in this experiment?"
)
# Words of a verdict, in the order in which they are counted.
_VERDICTS = {"holds here": "hold", "does not hold here": "do not hold", "stays open here": "open"}


def _ranked(case: Case, models: tuple[Model, ...], kind: str) -> list[tuple[float, float, Model]]:
    """Return average, error and model of those that are compared, the highest first."""
    found = [
        (score.value, score.stderr, model)
        for model in models
        if model.kind == kind and (model.best_of or kind != "merge")
        if (score := case.average(model))
    ]
    return sorted(found, key=lambda entry: (entry[0], entry[1], entry[2].label), reverse=True)


def _against(case: Case, first: Model, second: Model) -> tuple[float, float]:
    """Return the difference of two averages and half of its 95 % interval."""
    if case.several:
        return gaps([first, second], first, case.average)[second.id]
    one, two = ([score] for model in (first, second) if (score := case.average(model)))
    return difference(one, two)


def _sentence(case: Case) -> str:
    """Say which merge leads a case, what is not told apart from it, and how the experts compare."""
    ranked, others = _ranked(case, case.models, "merge"), _ranked(case, case.more, "merge")
    if not ranked:
        return f"{case.title}: no merge has been scored on every column."
    value, stderr, best = ranked[0]
    line = f"{case.title}: {best.label} has the highest average, {number(value)} ±{number(stderr)}"
    if tied := near_ties(case):
        line += (
            "; the paired test, corrected for the number of rows, does not separate "
            f"{best.label} from {', '.join(tied)}"
        )
    elif ranked[1:]:
        gap, width = _against(case, best, ranked[1][2])
        line += f"; less the next, {ranked[1][2].label}, {_interval(gap, width)}"
    if experts := _ranked(case, case.models, "expert"):
        expert = experts[0][2]
        gap, width = _against(case, best, expert)
        verdict = "above" if gap > width else "below" if gap < -width else "not separated from"
        line += f"; it is {verdict} the best expert ({expert.label}, {_interval(gap, width)})"
    if others:
        value, stderr, other = others[0]
        line += f"; of the other methods{untuned(case)}, {other.label} leads"
        line += f" with {number(value)} ±{number(stderr)}"
    return line + "."


def _interval(gap: float, width: float) -> str:
    return f"{signed(gap)} [{signed(gap - width)}, {signed(gap + width)}]"


def _claims(found: Mapping[str, str], count: int) -> str:
    """Count the claims that hold here, that do not, and that are open."""
    said: dict[str, list[str]] = {}
    for id, line in found.items():
        words = [word for word in _VERDICTS if word in line]
        said.setdefault(_VERDICTS[words[0]] if len(words) == 1 else "mixed", []).append(id)
    counts = "; ".join(f"{len(ids)} {word} ({', '.join(ids)})" for word, ids in said.items())
    left = count - len(found)
    rest = f"; {left} cannot be judged by these tables" if left else ""
    return f"Of the paper's {count} claims: {counts or 'none can be judged'}{rest}."


def answers(experiment: Experiment, found: Mapping[str, str], count: int) -> list[str]:
    """Answer the question: a sentence for each case, and one for the paper's claims.

    Args:
        experiment: The experiment.
        found: What its tables say, by claim; see `report.verdicts`.
        count: How many claims there are.
    """
    return [*map(_sentence, experiment.cases), _claims(found, count)]
