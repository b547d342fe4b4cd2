"""The figures of several parts, added up by hand."""

from tests.faults.added import added


def test_parts_are_added_up_by_hand():
    parts = [
        {"fuzz: a": {"inputs": 10, "slowest ms": 7}, "kills: most of one point": 2, "kills": 5},
        {"fuzz: a": {"inputs": 11, "refused": 4, "slowest ms": 3}, "kills: most of one point": 1},
        {"kills": 1, "load: to plan": {"rows": 1000, "CPU s": 9.5}},
    ]
    assert added(parts) == {
        "fuzz: a": {"inputs": 21, "refused": 4, "slowest ms": 7},
        "kills": 6,
        "kills: most of one point": 2,
        "load: to plan": {"rows": 1000, "CPU s": 9.5},
    }
