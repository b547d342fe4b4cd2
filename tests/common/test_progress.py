"""Progress lines: now and then, with what is left where the end is known."""

import pytest

from common import progress


@pytest.fixture
def clock(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    return now


def test_a_line_every_ten_seconds_says_what_is_left(clock, capsys):
    shown = progress.Progress(8, "case1/ja: training")
    clock[0] += 6
    shown.step()
    assert capsys.readouterr().err == ""
    clock[0] += 6
    shown.step(note="loss 0.12")
    # 12 s for two steps, six to come.
    assert capsys.readouterr().err == "case1/ja: training: 2/8, loss 0.12, about 36 s left\n"
    clock[0] += 9
    shown.step()
    assert capsys.readouterr().err == ""


def test_without_a_known_end_nothing_is_said_of_it(clock, capsys):
    shown = progress.Progress(None, "evolve")
    clock[0] += 10
    shown.step(14)
    assert capsys.readouterr().err == "evolve: 14 done\n"
    clock[0] += 10
    shown.step(note="failed")
    assert capsys.readouterr().err == "evolve: 15 done, failed\n"
