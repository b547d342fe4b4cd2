"""Damaged and odd input for each reader of ours: an error of one line or none, within a second.

Hypothesis draws the inputs (`inputs.py`, `readers.py`). A reader either returns, or raises a
`UserError`, which the command line shows as one line (`common.calling.say`).
"""

from __future__ import annotations

import contextlib
import io
import time
from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, given, seed, settings

from common.calling import say
from common.errors import UserError
from tests.faults import readers, readers_of_results
from tests.faults.laboratory import PART, PARTS, amount

pytestmark = [pytest.mark.faults(short=True), pytest.mark.timeout(3600)]
SLOWEST = 1.0  # CPU seconds of an input
CORPUS = Path(__file__).parent / "corpus"  # of `guided.py`: a file for each reader, bytes in hex
OF_OTHERS = ("configuration", "layer_rules", "header", "index", "gguf")
OF_MODELS = ("mergekit", "adapter", "recipe")
OF_RESULTS = ("scores", "manifest", "data_rows")
# These have no refusal, or count what they refuse: nothing is raised at all.
ALL_TAKEN = ("extraction", "comparison", "answered_texts", "stored", "results")


def given_to(reader, drawn):
    """Read an input; return the CPU seconds, and whether it was refused, which must be a line."""
    began, said, refused = time.thread_time(), io.StringIO(), False
    try:
        reader.read(drawn)
    except UserError as error:
        refused = True
        with contextlib.redirect_stderr(said):
            say(f"error: {error}")
        line = said.getvalue()
        assert line.count("\n") == 1 and line[:-1].isprintable() and len(line) < 5000
    return time.thread_time() - began, refused


def trial(reader, count):
    """Return a function that gives a reader so many inputs, and what it has counted."""
    found = {"inputs": 0, "refused": 0, "slowest ms": 0}

    @settings(
        max_examples=count,
        deadline=None,
        database=None,
        phases=[Phase.generate, Phase.shrink],
        suppress_health_check=list(HealthCheck),
    )
    @seed(PART)
    @given(drawn=reader.inputs)
    def each(drawn):
        found["inputs"] += 1
        spent, refused = given_to(reader, drawn)
        if spent >= SLOWEST:  # twice: Python collects garbage now and then
            spent = min(spent, given_to(reader, drawn)[0])
        found["refused"] += refused
        found["slowest ms"] = max(found["slowest ms"], round(spent * 1000))
        assert spent < SLOWEST, f"{spent:.1f} CPU s"

    return each, found


def reader_of(name, folder, models=None):
    """Return a reader by its name; those of models need a folder of `make_models`."""
    module = readers_of_results if name in (*OF_RESULTS, "answers", *ALL_TAKEN) else readers
    return getattr(module, name)(folder, *([models] if name in OF_MODELS else []))


def counted(name, reader, record_property):
    count = amount(150, 10_000, 100_000) // PARTS
    each, found = trial(reader, count)
    each()
    record_property(f"fuzz: {name}", found)
    # Hypothesis may end early where it has drawn all that there is, which is not so here.
    assert found["inputs"] >= count
    assert bool(found["refused"]) == (name not in ALL_TAKEN)


@pytest.mark.parametrize("name", (*OF_OTHERS, *OF_RESULTS, "answers", *ALL_TAKEN))
def test_a_reader_refuses_odd_input_in_a_line(name, tmp_path, record_property, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    counted(name, reader_of(name, tmp_path), record_property)


@pytest.mark.parametrize("name", OF_MODELS)
def test_a_reader_of_models_refuses_odd_input_in_a_line(
    name, tmp_path, record_property, tiny_models, capsys
):
    counted(name, reader_of(name, tmp_path, tiny_models), record_property)


@pytest.mark.parametrize("name", sorted(path.stem for path in CORPUS.iterdir()))
def test_what_coverage_guided_runs_kept_is_read_or_refused_in_a_line(
    name, tmp_path, tiny_models, capsys, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    each, found = trial(reader_of(name, tmp_path, tiny_models), 1)
    kept = (CORPUS / f"{name}.txt").read_text(encoding="utf-8").split()
    for drawn in kept:
        each.hypothesis.fuzz_one_input(bytes.fromhex(drawn))
    assert 0 < found["inputs"] <= len(kept)  # bytes that are too few for a document are no input


@pytest.fixture(scope="module")
def tiny_models(tmp_path_factory):
    return make_models(tmp_path_factory.mktemp("models"))


def make_models(top):
    """Make tiny models with random weights, and a merge of them; return their folder."""
    import importlib

    def run(package, *words):
        assert not importlib.import_module(f"{package}.cli").main([str(word) for word in words])

    run("bottle", "tiny", top)
    experts = [f"{name}={top / name}" for name in ("ja", "math_a")]
    run("merges", "--method", "linear", "--base", top / "base", "--experts", *experts,
        "--out", top / "merged")  # fmt: skip
    return top
