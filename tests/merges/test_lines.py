"""Losses on lines between models: against transformers in float64, row by row, and at the ends."""

from __future__ import annotations

import copy
import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.nn import functional as F

from checkpoints.reading import Checkpoint
from common.calling import call
from common.files import read_json
from common.manifest import check_recorded
from merges import lines
from tests.merges.dam_world import EXPERTS, make_world, plain_model

ROWS = 7
BOS, EOS = 1, 2


@pytest.fixture(scope="module")
def world(make_model, tmp_path_factory):
    """Base, experts, their rows, a merge of the experts, and one that holds the last expert."""
    top = tmp_path_factory.mktemp("lines")
    request = make_world(top, make_model, "mistral", torch.float32)
    given = ["--experts", *(f"{name}={top / name}" for name in EXPERTS)]
    assert call("merges.cli", ["--method", "linear", *given, "--out", str(top / "soup")]) == 0
    return top, request


@pytest.fixture(scope="module")
def found(world):
    top, request = world
    merges = {"soup": Checkpoint(top / "soup"), "same": Checkpoint(top / EXPERTS[-1])}
    return lines.lines(request.base, request.experts, merges, request.calibration, ROWS)


def plain_loss(model, path):
    """Mean over the answers' tokens, each row alone; a word w7 has the number 7."""
    total = count = 0
    for line in path.read_text().splitlines()[:ROWS]:
        row = json.loads(line)
        prompt, answer = (
            [int(word[1:]) for word in row[part].split()] for part in ("prompt", "answer")
        )
        ids = torch.tensor([BOS, *prompt, *answer, *([EOS] if row["eos"] else [])])
        logits = model(ids[None]).logits[0, :-1]
        each = F.cross_entropy(logits, ids[1:], reduction="none")[len(prompt) :]
        total, count = total + float(each.sum()), count + len(each)
    return total / count


def mixed(one, two, place):
    """The model at a place of a line, in float64."""
    model = copy.deepcopy(plain_model(one, torch.float64))
    ends = [plain_model(path, torch.float64).state_dict() for path in (one, two)]
    model.load_state_dict({n: (1 - place) * ends[0][n] + place * ends[1][n] for n in ends[0]})
    return model


@pytest.mark.parametrize("place", range(5))
def test_losses_are_those_of_interpolated_models_row_by_row(world, found, place):
    top, request = world
    share = found["places"][place]
    assert found["places"] == [0, 0.25, 0.5, 0.75, 1]
    model = mixed(top / "base", top / "soup", share)
    for expert in EXPERTS:
        wanted = plain_loss(model, request.calibration[expert])
        assert found["base"]["soup"][expert][place] == pytest.approx(wanted, abs=1e-5)
        there = plain_loss(mixed(top / "soup", top / expert, share), request.calibration[expert])
        assert found["experts"]["soup"][expert][place] == pytest.approx(there, abs=1e-5)


def test_lines_meet_and_a_merge_that_is_an_expert_has_its_loss_all_the_way(found):
    assert found["rows"] == dict.fromkeys(EXPERTS, ROWS)
    for expert in EXPERTS:
        for merge in ("soup", "same"):
            to, on = found["base"][merge][expert], found["experts"][merge][expert]
            assert to[-1] == on[0]
            assert to[0] == found["base"]["soup"][expert][0]  # all begin at the base
            assert on[-1] == found["experts"]["soup"][expert][-1]  # and end at the expert
    still = found["experts"]["same"][EXPERTS[-1]]
    assert still == pytest.approx([still[0]] * 5, abs=1e-6)
    assert len(set(found["base"]["same"][EXPERTS[-1]])) == 5


def test_the_command_writes_and_prints_the_lines(world, found, tmp_path, capsys):
    top, request = world
    out = tmp_path / "inspection.json"
    given = [
        "inspect",
        "--base",
        f"{top / 'base'}",
        "--experts",
        *(f"{e}={top / e}" for e in EXPERTS),
    ]
    given += ["--merges", f"soup={top / 'soup'}", "--out", str(out)]
    rows = [f"{name}={path}" for name, path in request.calibration.items()]
    assert call("merges.cli", [*given, "--calibration", *rows, "--rows", str(ROWS)]) == 0
    written = read_json(out)["lines"]
    check_recorded(out)
    assert written["rows"] == found["rows"]
    for side in ("base", "experts"):
        for expert, losses in written[side]["soup"].items():
            assert losses == pytest.approx(found[side]["soup"][expert], abs=1e-5)
    inputs = read_json(tmp_path / "inspection.manifest.json")["inputs"]
    assert {f"calibration.{expert}" for expert in EXPERTS} < set(inputs)
    printed = [line.split() for line in capsys.readouterr().out.splitlines()]
    shown = printed[[words[:2] for words in printed].index(["lines", "to"]) + 1]
    highest = max(max(line) - max(line[0], line[-1]) for line in written["base"]["soup"].values())
    ends = [written["base"]["soup"][expert][-1] for expert in EXPERTS]
    assert shown[:-1] == ["soup", *(f"{value:.3f}" for value in (*ends, highest))]
    # Without rows there are none.
    assert call("merges.cli", given) == 0 and "lines" not in read_json(out)


def test_a_loss_that_is_not_finite_leaves_its_merge_out(world, tmp_path, make_model):
    top, request = world
    make_model(tmp_path / "huge", "mistral")
    weights = load_file(top / "base" / "model.safetensors")
    name = next(key for key in weights if "lm_head" in key)
    weights[name] = torch.full_like(weights[name], 3e38)
    save_file(weights, tmp_path / "huge" / "model.safetensors", metadata={"format": "pt"})
    merges = {"huge": Checkpoint(tmp_path / "huge"), "soup": Checkpoint(top / "soup")}
    found = lines.lines(request.base, request.experts, merges, request.calibration, ROWS)
    assert set(found["base"]) == set(found["experts"]) == {"soup"}


def test_bad_rows_are_one_line(world, tmp_path, capsys):
    top, request = world
    out = tmp_path / "inspection.json"
    given = ["inspect", "--base", f"{top / 'base'}", "--experts", f"one={top / 'one'}"]
    given += ["--merges", f"soup={top / 'soup'}", "--out", str(out), "--calibration"]
    empty = tmp_path / "empty.jsonl"
    empty.write_text(json.dumps({"prompt": "w5 w6", "answer": "", "eos": False}) + "\n")
    for value, word in (
        (f"one={empty}", "answer"),
        (f"two={request.calibration['two']}", "one"),
        (f"one={tmp_path / 'none.jsonl'}", "none.jsonl"),
    ):
        assert call("merges.cli", [*given, value]) == 2
        (error,) = [x for x in capsys.readouterr().err.splitlines() if x.startswith("error:")]
        assert word in error and not out.exists()
