"""The model of a merge's growth finds known coefficients again, and counts published models."""

import math

import pytest

from benchmarks import merge_growth
from benchmarks.merge_growth import PUBLISHED, Case, estimated, fit

CASES = [
    Case(parameters, largest, experts)
    for parameters, largest in ((10**8, 2 * 10**7), (7 * 10**8, 5 * 10**7), (2 * 10**9, 7 * 10**7))
    for experts in (2, 3, 8)
]


@pytest.mark.parametrize("figure", ["cpu", "rss"])
def test_known_coefficients_are_found_again(figure):
    known = {"cpu": (0.4, 1.5, 2.5), "rss": (90.0, 2.0, 30.0)}[figure]

    def formula(case: Case) -> float:
        start, by_expert, last = known
        if figure == "cpu":
            return start + (by_expert * case.experts + last) * case.parameters / 1e9
        return start + by_expert * case.experts + last * case.largest / 1e9

    found = fit(CASES[:-2], [formula(case) for case in CASES[:-2]], figure)
    assert found == pytest.approx(known)
    for case in CASES:
        assert estimated(case, found, figure) == pytest.approx(formula(case))


def test_no_term_is_below_zero():
    """A cost that falls with size is noise; a negative share would estimate less than nothing."""
    falling = [3.0 - case.parameters / 1e9 for case in CASES]
    assert min(fit(CASES, falling, "cpu")) >= 0


@pytest.mark.parametrize(
    ("name", "hidden", "wide", "layers", "keys", "vocabulary"),
    [
        ("7B", 4096, 11_008, 32, 4096, 32_000),
        ("70B", 8192, 28_672, 80, 1024, 128_256),
        ("405B", 16_384, 53_248, 126, 1024, 128_256),
    ],
)
def test_published_models_are_counted(name, hidden, wide, layers, keys, vocabulary):
    layer = 2 * hidden * hidden + 2 * keys * hidden + 3 * wide * hidden + 2 * hidden
    count = layers * layer + 2 * vocabulary * hidden + hidden
    assert merge_growth.PUBLISHED[name] == (count, vocabulary * hidden)
    assert PUBLISHED[name][1] == max(vocabulary * hidden, wide * hidden)
    assert math.log10(count) > 9
