"""The page's first words: the question, and the answer in three sentences with intervals."""

from __future__ import annotations

from collections.abc import Sequence

from report.averages import Score
from report.case_table import near_ties, untuned
from report.experiment import Case, Experiment, Model
from report.grid import number, signed
from report.pairs import Test, compared, weights_of
from report.verdicts import FAILS, HOLDS, OPEN, Judgement

QUESTION = (
    "Which way of merging fine-tuned language models keeps most of its experts' skills, and do "
    "the paper's claims hold in this experiment?"
)
_NAMED = 8  # rows in a sentence
# How many claims do what, in the order in which they are counted.
_VERDICTS = {
    HOLDS: ("holds", "hold"),
    FAILS: ("does not hold", "do not hold"),
    OPEN: ("is open", "are open"),
}


def _against(case: Case, first: Model, second: Model) -> Test:
    """Test the difference of two averages as the tables do."""
    merges = [model for model in case.all_models if model.kind == "merge"]
    weights = weights_of(case.averaged)
    found = compared([*merges, second], first, case.average, weights, second.id)
    return found[second.id]


def _sentence(case: Case) -> str:
    """Say which merge leads a case, what is not told apart from it, and how the experts compare."""
    ranked, others = case.ranked("merge"), case.ranked("merge", case.more)
    if not ranked:
        return f"{case.title}: no merge has been scored on every column."
    best, score = ranked[0]
    line = f"{case.title}: {best.label} has the highest average, {_with_error(score)}"
    if tied := near_ties(case):
        line += (
            "; the paired test, corrected for the number of rows, does not separate "
            f"{best.label} from {_several(tied)}"
        )
    elif ranked[1:]:
        second = ranked[1][0]
        line += f"; less the next, {second.label}, {_interval(_against(case, best, second))}"
    if experts := case.ranked("expert"):
        expert = experts[0][0]
        gap = _against(case, best, expert)
        verdict = "above" if gap.low > 0 else "below" if gap.high < 0 else "not separated from"
        line += f"; it is {verdict} the best expert ({expert.label}, {_interval(gap)})"
    if others:
        other, score = others[0]
        line += f"; of the other methods{untuned(case)}, {other.label} leads"
        line += f" with {_with_error(score)}"
    return line + "."


def _several(labels: Sequence[str]) -> str:
    """List labels; of many, the first and how many there are besides."""
    if len(labels) <= _NAMED:
        return ", ".join(labels)
    return f"{', '.join(labels[: _NAMED - 1])} and {len(labels) - _NAMED + 1} others"


def _with_error(score: Score) -> str:
    return f"{number(score.value)} ±{number(score.stderr)}"


def _interval(gap: Test) -> str:
    return f"{signed(gap.value)} [{signed(gap.low)}, {signed(gap.high)}]"


def _claims(judged: Sequence[Judgement]) -> str:
    """Count the claims that hold here, that do not, and that are open."""
    said: dict[str, list[str]] = {verdict: [] for verdict in _VERDICTS}
    for one in judged:
        if one.findings:
            said[one.verdict].append(one.claim.id)
    counts = "; ".join(
        f"{len(ids)} {_VERDICTS[verdict][len(ids) > 1]} ({', '.join(ids)})"
        for verdict, ids in said.items()
        if ids
    )
    left = len(judged) - sum(map(len, said.values()))
    rest = f"; {left} cannot be judged by these tables" if left else ""
    return f"Of the paper's {len(judged)} claims: {counts or 'none can be judged'}{rest}."


def answers(experiment: Experiment, judged: Sequence[Judgement]) -> list[str]:
    """Answer the question: a sentence for each case, and one for the paper's claims.

    Args:
        experiment: The experiment.
        judged: The paper's claims; see `report.verdicts.judgements`.
    """
    return [*map(_sentence, experiment.cases), _claims(judged)]
