"""What this experiment's tables say of the paper's claims, with numbers and their uncertainty.

Which rows stand for whom and which test decides is in the file of published values.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from report.averages import Score
from report.case_table import table_title
from report.compute import points
from report.cost import amount, costs
from report.experiment import Case, Experiment, Model, Objective
from report.intervals import mean
from report.pairs import Of, Test, agreeing, compared, over_runs, weights_of
from report.published import Claim, Published

MUCH_LOWER = 2.0  # claim C2's "much lower compute cost" is read as at most half
LITTLE = 0.02  # "near", "matches" and "changes little" are read as two points of a score
_DRAWS = 4000  # of the scores, for the interval of a spread
HOLDS, FAILS, OPEN = "holds", "does not hold", "open"
_WORDS = {HOLDS: "holds here", FAILS: "does not hold here", OPEN: "stays open here"}


@dataclass(frozen=True)
class Finding:
    """One comparison that bears on a claim.

    Attributes:
        table: Name of the table.
        compared: What is compared, in words: ``DAM (tuned) less TIES (tuned), Avg``.
        verdict: ``holds``, ``does not hold`` or ``open``.
        effect: The difference with its interval; None for a price.
        agree: In how many worlds or seeds the difference has the sign of the mean.
        repeats: Of how many.
        over: What these are: ``worlds`` or ``seeds``.
        price: What the two cost, in words; empty where that is not compared.
    """

    table: str
    compared: str
    verdict: str
    effect: Test | None
    agree: int = 0
    repeats: int = 0
    over: str = "worlds"
    price: str = ""


@dataclass(frozen=True)
class Judgement:
    """A claim with all that bears on it; the verdict is open where nothing does.

    Attributes:
        claim: The claim.
        verdict: ``holds``, ``does not hold`` or ``open``.
        findings: Every comparison that bears on it.
        deciding: The one from which the verdict follows: the first of a test with this verdict,
            one with an interval if any is. Of an open claim it may say what cannot be compared.
    """

    claim: Claim
    verdict: str
    findings: tuple[Finding, ...]
    deciding: Finding | None = None


def judge(what: str, low: float, high: float) -> str:
    """Compare a 95 % interval with what a claim says of a difference.

    Args:
        what: ``above``, ``below``, ``near``, ``matches`` or ``not_above``.
        low: The interval's lower end.
        high: Its upper end.

    Returns:
        ``open`` where the interval contains the border.
    """
    holds, fails = {
        "above": (low > 0, high < 0),
        "below": (high < 0, low > 0),
        "near": (low >= -LITTLE and high <= LITTLE, low > LITTLE or high < -LITTLE),
        "matches": (low >= -LITTLE, high < -LITTLE),
        "not_above": (high <= LITTLE and low <= 0, low > 0),
    }[what]
    return HOLDS if holds else FAILS if fails else OPEN


def _joined(verdicts: Sequence[str], any_: bool = False) -> str:
    """Put verdicts together, of which all must hold, or any."""
    first, second = (HOLDS, FAILS) if any_ else (FAILS, HOLDS)
    if first in verdicts:
        return first
    return second if verdicts and set(verdicts) == {second} else OPEN


def deviation(scores: Sequence[float]) -> float:
    """Return the standard deviation of scores, with divisor n."""
    centre = mean(scores)
    return math.sqrt(mean([(score - centre) ** 2 for score in scores]))


def spread_difference(
    first: Sequence[Score], second: Sequence[Score]
) -> tuple[float, float, float]:
    """Compare how much two rows' scores differ between columns.

    Returns:
        The first's standard deviation over columns (divisor n) less the second's, and the ends of
        its 95 % interval: quantiles over draws of every score from a normal distribution with its
        standard error.
    """
    draw = random.Random(0)
    gaps = sorted(
        deviation([draw.gauss(s.value, s.stderr) for s in first])
        - deviation([draw.gauss(s.value, s.stderr) for s in second])
        for _ in range(_DRAWS)
    )
    gap = deviation([s.value for s in first]) - deviation([s.value for s in second])
    return gap, gaps[round(0.025 * (_DRAWS - 1))], gaps[round(0.975 * (_DRAWS - 1))]


def _spread(scores: Sequence[Score]) -> Score:
    """Return the deviation over columns; of its error, the part of items that all worlds share.

    Source: the delta method, with the deviation's derivative (score - mean) / (n deviation).
    """
    values = [score.value for score in scores]
    found, centre, count = deviation(values), mean(values), len(values)
    slopes = [(value - centre) / (count * found) if found else 1 / count for value in values]
    parts = zip(slopes, scores, strict=True)
    shared = math.fsum(slope**2 * score.shared for slope, score in parts)
    return Score(found, math.sqrt(shared), 1, shared=shared)


def _over_columns(case: Case, model: Model) -> list[Score]:
    return [score for column in case.averaged if (score := model.column(column))]


@dataclass(frozen=True)
class _Side:
    """A case as one test of a claim looks at it."""

    experiment: Experiment
    published: Published
    case: Case
    test: Mapping[str, Any]

    def of(self, model: Model) -> Score | None:
        """Return what the test compares of a row."""
        if self.test.get("spread"):
            scores = _over_columns(self.case, model)
            return _spread(scores) if len(scores) == len(self.case.averaged) else None
        return self.case.score(model, self.test.get("column", "Avg"))

    def weights(self) -> dict[str, float]:
        """Return the weights of the tasks in that."""
        if self.test.get("spread"):
            return {}
        column = self.test.get("column", "Avg")
        columns = [c for c in self.case.columns if c.label == column] or self.case.averaged
        return weights_of(columns)

    def highest(self, role: str) -> Model | None:
        """Return the row with the highest average of those that stand for one of the paper's."""
        rows = self.published.tables[self.case.table].rows
        own = rows[self.test["row"]].ours if role == "others" else rows[role].ours
        merges = [m for m in self.case.models if m.kind == "merge" and self.of(m)]
        if role == "others":
            # All of a method's rows are its own, those beyond the published file too.
            methods = {m.method for m in merges if m.id in own} if own else set()
            found = [m for m in merges if m.id not in own and m.method not in methods and m.best_of]
            ranked = [(score.value, m.id, m) for m in found if (score := self.of(m))]
        else:
            named = [m for m in merges if m.id in own]
            found = [m for m in named if m.best_of] or named
            ranked = [(score.value, m.id, m) for m in found if (score := self.case.average(m))]
        return max(ranked, key=lambda entry: entry[:2])[2] if ranked else None

    def compare(self, first: Model, second: Model) -> Finding:
        """Test one row against another."""
        quantity = "deviation over the columns" if self.test.get("spread") else ""
        quantity = quantity or self.test.get("column", "Avg")
        effect: Test
        if self.test.get("spread") and not self.case.several:
            pair = (_over_columns(self.case, model) for model in (first, second))
            gap, low, high = spread_difference(*pair)
            effect = Test(gap, low, high, math.nan)
        else:
            merges = [m for m in self.case.models if m.kind == "merge" and self.of(m)]
            own = self.of if quantity != "Avg" else self.case.average  # which is recalled
            effect = compared(merges, first, own, self.weights(), second.id)[second.id]
        agree, repeats = agreeing(first, second, self.of, effect.value)
        verdict = judge(self.test["is"], effect.low, effect.high)
        words = f"{first.label} less {second.label}"
        words += "" if quantity == "Avg" else f", {quantity}"
        return Finding(self.case.table, words, verdict, effect, agree, repeats)

    def price(self, first: Model, second: Model) -> Finding:
        """Compare what two rows cost."""
        spent = {p.model.id: p.flops for p in points(self.case, costs(self.experiment))}
        own, other = spent.get(first.id), spent.get(second.id)
        verdict, words = OPEN, "costs are missing"
        if own and other:
            verdict = HOLDS if own <= self.test["price"] * other else FAILS
            words = f"{amount(own)} FLOPs, teachers included, against {amount(other)}"
        pair = f"price of {first.label} and of {second.label}"
        return Finding(self.case.table, pair, verdict, None, price=words)

    def findings(self) -> list[Finding]:
        """Make the test's comparisons; none where a row is missing."""
        if "same_but" in self.test:
            return [self.compare(*pair) for pair in _same_but(self.experiment, self.case, self.of)]
        first = self.highest(self.test["row"])
        others = [self.highest(role) for role in self.test["than"]]
        if first is None or None in others:
            return []
        do = self.price if "price" in self.test else self.compare
        return [do(first, other) for other in others if other]


def _same_but(experiment: Experiment, case: Case, of: Of) -> Iterator[tuple[Model, Model]]:
    """Pair rows with the base's embeddings and norms with rows that are the same but for these."""
    key, methods = "embeddings_and_norms", experiment.config["methods"]

    def rest(model: Model) -> dict[str, Any]:
        entry = methods.get(model.id, {})
        return {name: entry[name] for name in entry if name not in (key, "label")}

    merges = [m for m in case.models if m.kind == "merge" and of(m)]
    for one in merges:
        for two in merges:
            kept = one.embeddings_and_norms == "base" and two.embeddings_and_norms == "merged"
            if kept and rest(one) == rest(two):
                yield one, two


def _objective(experiment: Experiment, terms: str) -> Objective | None:
    """Return the objective of Table 3 that consists of some terms."""
    ablation = experiment.ablation
    about = experiment.config["ablation"]["objectives"] if ablation else {}
    for entry in ablation.objectives if ablation else ():
        own = set(about[entry.id].get("objective", {}))
        if not entry.extra and own == set(terms.split()):
            return entry
    return None


def _in_ablation(experiment: Experiment, test: Mapping[str, Any]) -> list[Finding]:
    """Make a test's comparisons of objectives, paired over seeds and items."""
    names = [test["row"], *test["than"]]
    first, *others = (_objective(experiment, terms) for terms in names)
    ablation, found = experiment.ablation, []
    if ablation is None or first is None or None in others:
        return []
    case = ablation.case
    for other in others:
        if other is None:
            continue
        pairs = zip(first.runs, other.runs, strict=True)
        scores = [(case.average(one), case.average(two)) for one, two in pairs]
        effect = over_runs(first.runs, other.runs, case.average, weights_of(case.averaged))
        if effect is None:
            return []
        signs = [(one.value - two.value) * effect.value > 0 for one, two in scores if one and two]
        verdict = judge(test["is"], effect.low, effect.high)
        words = f"{first.label} less {other.label}"
        found.append(
            Finding("table3", words, verdict, effect, sum(signs), len(signs), over="seeds")
        )
    return found


def _deciding(verdict: str, parts: Sequence[tuple[str, Sequence[Finding]]]) -> Finding | None:
    """Choose the comparison from which a claim's verdict follows, given each test's."""
    own: list[Finding] = []
    for word, found in parts:
        if word == verdict:
            own += [one for one in found if one.verdict == verdict]
    return next((one for one in own if one.effect), own[0] if own else None)


def judgements(experiment: Experiment, published: Published) -> list[Judgement]:
    """Judge every claim of the paper, with all comparisons that bear on it.

    A claim holds if all its tests do, fails if one of them does, and is open otherwise.
    """
    cases = {case.table: case for case in experiment.cases}
    made = []
    for claim in published.claims:
        findings: list[Finding] = []
        parts: list[tuple[str, list[Finding]]] = []
        for test in claim.tests:
            if test["table"] == "table3":
                found = _in_ablation(experiment, test)
            elif test["table"] in cases:
                found = _Side(experiment, published, cases[test["table"]], test).findings()
            else:
                continue
            findings += found
            words = [finding.verdict for finding in found]
            what = f"{test.get('column', 'rows')} not compared: not all in these tables"
            lacking = [] if found else [Finding(test["table"], what, OPEN, None)]
            parts.append((_joined(words, any_=test.get("any", False)), found or lacking))
        verdict = _joined([word for word, _ in parts])
        made.append(Judgement(claim, verdict, tuple(findings), _deciding(verdict, parts)))
    return made


def effect_text(effect: Test) -> str:
    """Write a difference with its 95 % interval."""
    return f"{effect.value:+.3f} [{effect.low:+.3f}, {effect.high:+.3f}]"


def sentences(judged: Sequence[Judgement]) -> dict[str, str]:
    """Say in a sentence each whether claims hold here; those without scores are left out."""
    lines = {}
    for one in judged:
        if one.findings:
            parts = [
                f"{table_title(finding.table)}: {finding.compared}: "
                + (effect_text(finding.effect) if finding.effect else finding.price)
                for finding in one.findings
            ]
            lines[one.claim.id] = f"{_WORDS[one.verdict]}: {'; '.join(parts)}."
    return lines
