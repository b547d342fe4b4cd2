"""The paper's claims in several experiments, claim by claim, from what their judgements came to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from common.errors import UserError
from common.files import read_json
from report.findings import effect_of
from report.grid import MISSING, Cell, Grid, Row
from report.published import CLAIMS, Claim
from report.verdicts import OPEN, Judgement

Said = Mapping[str, Mapping[str, str]]  # by claim: its verdict, effect, repeats and comparison
_FIELDS = ("verdict", "effect", "repeats", "compared")


def said(judged: Sequence[Judgement]) -> dict[str, dict[str, str]]:
    """Write an experiment's judgements in few words; a claim that nothing bears on is left out."""
    found = {}
    for one in judged:
        if one.findings and (finding := one.deciding):
            repeats = f"{finding.agree} of {finding.repeats} {finding.over}"
            values = one.verdict, effect_of(finding), repeats * bool(finding.repeats)
            found[one.claim.id] = dict(zip(_FIELDS, (*values, finding.compared), strict=True))
    return found


def read(path: Path = CLAIMS) -> dict[str, Said]:
    """Read the claims of the kept experiments, by experiment; nothing where there is no such file.

    Raises:
        UserError: The file is damaged.
    """
    if not path.exists():
        return {}
    found = read_json(path)
    try:
        for entry in found.values():
            for claim in entry.values():
                assert all(isinstance(claim[name], str) for name in _FIELDS)
    except (AssertionError, AttributeError, KeyError, TypeError):
        raise UserError(
            f"{path}: not a file of claims; make it again with `python -m report results`"
        ) from None
    return found


def _agreement(verdicts: Sequence[str]) -> str:
    """Say in a word whether experiments agree on a claim."""
    decided = [verdict for verdict in verdicts if verdict != OPEN]
    if len(verdicts) < 2:
        return "one experiment" if verdicts else MISSING
    if len(set(decided)) > 1:
        return "they differ"
    if len(decided) < 2:
        return "one decides" if decided else "all open"
    rest = len(verdicts) - len(decided)
    return "they agree" + (f", {rest} open" if rest else "")


def _listed(claims: Mapping[str, str], start: str) -> str:
    return ", ".join(id for id, word in claims.items() if word.startswith(start)) or "none"


def together_grid(claims: Sequence[Claim], found: Mapping[str, Said]) -> Grid:
    """Lay out every claim with a column for each experiment.

    Args:
        claims: The paper's claims.
        found: By experiment, in the order of the columns, what `said` gives.
    """
    rows, words = [], {}
    for claim in claims:
        own = [experiment.get(claim.id) for experiment in found.values()]
        words[claim.id] = _agreement([one["verdict"] for one in own if one])
        cells = [_cell(one) for one in own]
        texts = claim.id, claim.sentence, words[claim.id]
        rows.append(Row((*map(Cell, texts), *cells)))
    caption = (
        f"The paper's claims in {len(found)} experiments. Of the experiments that decide on a "
        f"claim, two or more agree on {_listed(words, 'they agree')}; they differ on "
        f"{_listed(words, 'they differ')}. A cell has the verdict, then the comparison that "
        "decides: its effect with the 95 % interval, and in how many worlds (of Table 3: seeds) "
        "it has the sign of the mean, where there are several. A dash: the experiment has no such "
        "rows. Models and tasks differ, so verdicts compare and sizes do not. Experiments that "
        "share experts or generated worlds are no independent witnesses."
    )
    header = ("Claim", "Sentence", "Together", *found)
    title = "Claims in all experiments"
    return Grid("together", title, caption, header, tuple(rows), texts=len(header))


def _cell(one: Mapping[str, str] | None) -> Cell:
    if one is None:
        return Cell(MISSING)
    parts = one["compared"], one["effect"], one["repeats"]
    return Cell(f"{one['verdict']}: {', '.join(p for p in parts if p not in ('', MISSING))}")


def with_kept(name: str, judged: Sequence[Judgement], kept: Mapping[str, Said]) -> dict[str, Said]:
    """Put an experiment in front of the kept ones, of which one of its name goes."""
    others = {other: entry for other, entry in kept.items() if other != name}
    return {f"{name} (this run)": said(judged), **others}
