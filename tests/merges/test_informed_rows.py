"""Rows of a configuration whose methods know statistics, or work on another row's model."""

from __future__ import annotations

from pathlib import Path

import pytest

from common.errors import UserError
from merges.engine import registry
from workflow import configuration

ROOT = Path(__file__).resolve().parents[2]


def changed(**methods: object) -> configuration.Configuration:
    base = configuration.read(ROOT / "more.yaml")
    return configuration.resolve(configuration.merge(base, {"methods": methods}))


def test_more_yaml_has_every_method_that_knows_statistics() -> None:
    config = configuration.load(ROOT / "more.yaml")
    rows = {row.method: row for row in config.methods.values()}
    informed = {name for name, info in registry.describe().items() if info.statistics}
    assert informed <= set(rows) and len(informed) == 7
    assert rows["led"].statistics == {"experts": "gradients", "base": "gradients"}
    assert rows["linear"].statistics == {} and not rows["regmean"].learns
    assert config.methods["aim_ties"].experts == ["ties_tuned"]
    assert all(row.table == "more" for row in rows.values() if row.statistics)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"method": "ties", "experts": ["soup"]}, "soup is a row; only a method of one expert"),
        ({"method": "aim", "experts": ["aim_ties"]}, "aim_ties is no row of case1's own experts"),
        ({"method": "aim", "experts": ["sopu"]}, "unknown expert 'sopu'"),
        ({"method": "aim"}, "method aim merges 1 experts, not 3"),
        (
            {"method": "aim", "experts": ["mine"], "cases": ["case1"]},
            "unknown expert 'mine'",
        ),
    ],
)
def test_a_row_that_names_a_row_is_checked(row: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        changed(mine={"label": "Mine", **row})
    assert changed(mine={"label": "Mine", "method": "aim", "experts": ["soup"]})
