"""Greedy soup: experts join a uniform average, best first, while it does not get worse."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from search.workbench import Evaluation


def greedy(
    experts: Sequence[str], evaluate: Callable[[tuple[str, ...]], Evaluation]
) -> tuple[str, ...]:
    """Choose the experts of a uniform soup by the dev average.

    Every expert is scored alone. In descending order of these scores (equal ones in the order
    given), each joins the soup if the soup's dev average does not fall. For n experts that can be
    scored these are 2n - 1 evaluations.

    Args:
        experts: The experts' names.
        evaluate: Averages and scores the named experts; an average of None is a failure.

    Returns:
        The chosen experts, in the order in which they joined; empty where none can be scored.

    Source:
        Wortsman et al., Model soups, 2022, arXiv:2203.05482, Recipe 1.
    """
    alone = {expert: evaluate((expert,)).average for expert in experts}
    scored = [expert for expert in experts if alone[expert] is not None]
    order = sorted(scored, key=lambda expert: -alone[expert])
    soup = tuple(order[:1])
    best = alone[order[0]] if order else None
    for expert in order[1:]:
        average = evaluate((*soup, expert)).average
        if average is not None and average >= best:
            soup, best = (*soup, expert), average
    return soup
