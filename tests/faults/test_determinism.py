"""The same run under other circumstances makes the same tables, scores and weights to the byte."""

from __future__ import annotations

import pytest

from tests.faults.laboratory import Laboratory, amount, differing, share

pytestmark = [pytest.mark.faults, pytest.mark.workflow, pytest.mark.timeout(3600)]
# Cores, PYTHONHASHSEED, LC_ALL, TZ, name of the folder. Every value is in one of the first three
# runs; the finished run, to which they are compared, has two cores and the user's own variables.
CIRCUMSTANCES = [
    ("1", "0", "C", "UTC", "plain"),
    ("2", "77", "POSIX", "Asia/Tokyo", "with spaces と日本語"),
    ("2", "12345", "C.UTF-8", "America/New_York", "plain too"),
    *(("1", "77", "C.UTF-8", "Asia/Tokyo", "日 本"), ("2", "0", "C", "America/New_York", "a b c")),
    *(("1", "12345", "POSIX", "UTC", "one"), ("2", "12345", "POSIX", "Asia/Tokyo", "two")),
]


def test_circumstances_change_no_byte(finished, tmp_path, record_property):
    whole, other = finished.snapshot(), {}
    tried = share(CIRCUMSTANCES[: amount(1, 3, 7)])
    for cores, seed, locale, zone, name in tried:
        project = Laboratory.of(finished, tmp_path / name, results=False)
        project.variables = {"PYTHONHASHSEED": seed, "LC_ALL": locale, "TZ": zone}
        command = ("workflow", "reproduce", "--config", "tiny.yaml", "--cores", cores)
        code, said = project.run(*command)
        assert code == 0, said[-3000:]
        assert "Traceback" not in said
        if found := differing(whole, project.snapshot()):
            other[(cores, seed, locale, zone, name)] = found
    record_property("determinism: runs compared", len(tried))
    record_property("determinism: files of each that were compared", len(whole))
    assert not other
