"""What this experiment's tables say of the paper's claims, with numbers and their uncertainty."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence

from report.averages import Score
from report.case_table import table_title
from report.compute import points
from report.cost import Cost, amount, costs
from report.experiment import Case, Experiment, Model
from report.intervals import difference, mean
from report.published import Published
from report.worlds import Gap, gaps

MUCH_LOWER = 2.0  # claim C2's "much lower compute cost" is read as at most half
LITTLE = 0.02  # "near" and "changes little" are read as two points of the average
_DRAWS = 4000  # of the scores, for the interval of a spread


def _gap(value: float, width: float) -> str:
    return f"{value:+.3f} ± {width:.3f}"


def _judged(holds: bool, fails: bool) -> str:
    return "holds here" if holds else "does not hold here" if fails else "stays open here"


def _rows(case: Case, ids: Sequence[str]) -> list[Model]:
    return [m for m in case.models if m.id in ids and case.average(m) is not None]


def _best(case: Case, models: Sequence[Model]) -> Model:
    found = [(model, score) for model in models if (score := case.average(model))]
    return max(found, key=lambda entry: entry[1].value)[0]


def _difference(case: Case, first: Model, second: Model) -> Gap:
    """Compare the averages of two rows; of several worlds, paired within these."""
    if case.several:
        merges = [model for model in case.models if model.kind == "merge"]
        return gaps(merges, first, case.average)[second.id]
    one, other = ([score] for model in (first, second) if (score := case.average(model)))
    return difference(one, other)


def _dam_leads(case: Case, published: Published) -> str:
    """C1: the best row of DAM against the best other merge."""
    own = _rows(case, published.tables[case.table].rows["dam"].ours)
    others = [
        model
        for model in case.models
        if model.kind == "merge" and model.best_of and model.method != "dam"
    ]
    others = [model for model in others if case.average(model) is not None]
    if not own or not others:
        return ""
    dam, rival = _best(case, own), _best(case, others)
    gap, width = _difference(case, dam, rival)
    verdict = _judged(gap - width > 0, gap + width < 0)
    return f"C1 {verdict}: {dam.label} less {rival.label}: {_gap(gap, width)}."


def _dam_against_search(case: Case, published: Published, found: Sequence[Cost]) -> str:
    """C2 for one seed of the search; the cost study has several."""
    rows = published.tables[case.table].rows
    own, searches = _rows(case, rows["dam"].ours), _rows(case, rows["evolutionary"].ours)
    spent = {point.model.id: point.flops for point in points(case, found)}
    if not own or not searches:
        return ""
    dam, search = _best(case, own), _best(case, searches[-1:])
    gap, width = _difference(case, dam, search)
    price, other = spent.get(dam.id), spent.get(search.id)
    line = f"{dam.label} less {search.label}: {_gap(gap, width)}"
    if not price or not other:
        return f"C2 stays open here, costs are missing: {line}."
    verdict = _judged(gap + width >= 0 and MUCH_LOWER * price <= other, True)
    return (
        f"C2 {verdict}: {line}, for {amount(price)} FLOPs, teachers included, against "
        f"{amount(other)}. One seed of the search; `python -m workflow study cost` runs several."
    )


def _objective(experiment: Experiment, *terms: str) -> list[Score] | None:
    """Return the averages, one a seed, of the objective that consists of these terms."""
    ablation = experiment.ablation
    if ablation is None:
        return None
    about = experiment.config["ablation"]["objectives"]
    for entry in ablation.objectives:
        if not entry.extra and set(about[entry.id].get("objective", {})) == set(terms):
            scores = [ablation.case.average(run) for run in entry.runs]
            return [score for score in scores if score is not None] or None
    return None


def _ablation(experiment: Experiment) -> dict[str, str]:
    """C7, C8, C9 and C12: differences in Table 3."""
    kl, mse, entropy = (_objective(experiment, term) for term in ("kl", "mse", "entropy"))
    cosine, norms = _objective(experiment, "kl", "cosine"), _objective(experiment, "kl", "l1", "l2")
    found = {}
    if kl and mse and entropy:
        gaps = {"MSE": difference(kl, mse), "entropy": difference(kl, entropy)}
        holds = all(gap - width > 0 for gap, width in gaps.values())
        fails = any(gap + width < 0 for gap, width in gaps.values())
        leads = "; ".join(f"less {name}: {_gap(*gap)}" for name, gap in gaps.items())
        found["C7"] = f"C7 {_judged(holds, fails)}: KL {leads}."
    if kl and cosine:
        gap, width = difference(cosine, kl)
        verdict = _judged(gap - width <= 0, True)
        found["C8"] = f"C8 {verdict}: KL + cosine less KL: {_gap(gap, width)}."
    if kl and entropy:
        gap, width = difference(entropy, kl)
        verdict = _judged(gap - width >= -LITTLE, gap + width < -LITTLE)
        found["C9"] = f"C9 {verdict}: entropy less KL: {_gap(gap, width)}, near meaning {LITTLE:g}."
    if kl and norms:
        gap, width = difference(norms, kl)
        fails = gap - width > LITTLE or gap + width < -LITTLE
        verdict = _judged(abs(gap) + width <= LITTLE, fails)
        found["C12"] = (
            f"C12 {verdict}: KL + L1/L2 less KL: {_gap(gap, width)}, little meaning {LITTLE:g}."
        )
    return found


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


def _spreads(case: Case, first: Model, second: Model) -> tuple[float, float, float]:
    """Compare two rows' spreads over the columns; of several worlds, paired within these."""

    def scores(model: Model) -> list[Score]:
        return [score for column in case.averaged if (score := model.column(column))]

    if not case.several:
        return spread_difference(scores(first), scores(second))

    def spread(model: Model) -> Score:
        return Score(deviation([score.value for score in scores(model)]), 0.0, 1)

    gap, width = gaps([first, second], first, spread)[second.id]
    return gap, gap - width, gap + width


def _balance(case: Case, published: Published) -> str:
    """C13: Model Soups' spread over the columns against DARE-TIES's."""
    rows = published.tables[case.table].rows
    soups, others = _rows(case, rows["soup"].ours), _rows(case, rows["dare_ties"].ours)
    if not soups or not others:
        return ""
    found = []
    for other in others:
        gap, low, high = _spreads(case, soups[0], other)
        verdict = _judged(high < 0, low > 0)
        found.append(f"against {other.label} {verdict}: {gap:+.3f} [{low:+.3f}, {high:+.3f}]")
    return f"C13, deviation over the columns of {soups[0].label}, {'; '.join(found)}."


def verdicts(experiment: Experiment, published: Published) -> dict[str, str]:
    """Judge the claims that the tables can judge.

    Returns:
        By the claim's id, a line: whether it holds here, the difference that decides and its
        95 % interval over items, and over worlds or seeds where there are several. A claim is open
        if the interval contains the border. Claims without scores are left out.
    """
    lines: dict[str, list[str]] = {}
    found = costs(experiment)
    for case in experiment.cases:
        if case.table not in published.tables:
            continue
        judged = {"C13": _balance(case, published)}
        if case.table == "table1":
            judged["C1"] = _dam_leads(case, published)
            judged["C2"] = _dam_against_search(case, published, found)
        for id, line in judged.items():
            if line:
                lines.setdefault(id, []).append(f"{table_title(case.table)}: {line}")
    if experiment.ablation:
        for id, line in _ablation(experiment).items():
            lines.setdefault(id, []).append(f"Table 3: {line}")
    return {id: " ".join(parts) for id, parts in lines.items()}
