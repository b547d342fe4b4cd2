"""The study of scale on records with known formulas: relative scores, claims, law, predictors."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from common.calling import call
from common.errors import UserError
from studies.scale import claims, default_run, predictors
from studies.scale.law import Point, fit, predictions
from studies.scale.load import cells_of, load
from tests.studies.scale_parts import CONFIG, SIZES, part, sets

FLAT = (0.5, 0.25, 1.0)


def write(results: Path, merged: Callable[..., tuple], seeds=(1, 2, 3), **more: Any) -> Any:
    folder = results / "studies" / "scale" / "parts"
    folder.mkdir(parents=True, exist_ok=True)
    for seed in seeds:
        for size in SIZES:
            record = part(seed, size, merged, **more)
            (folder / f"{size}-seed{seed}.json").write_text(json.dumps(record))
    return load(CONFIG, results)


def test_scores_are_relative_to_the_experts_that_learned():
    record = part(1, "small", lambda *_: (0.5, 0.3, 1.5))
    models = record["cells"]["weak"]["models"]
    for task in ("marc", "jnli"):  # 22 of 100 are no lead over 20
        models["ja_judging"][task] = {**models["ja_judging"][task], "exact": 0.22}
    weak, strong = sorted(cells_of(record), key=lambda cell: cell.quality == "strong")
    assert "ja_judging" not in weak.learned and len(weak.learned) == 7
    assert len(strong.learned) == 8
    pair = next(m for m in weak.merges if m.members == ("ja_facts", "ja_judging"))
    assert pair.held_in == pytest.approx(0.5 / 0.8) and pair.gain == pytest.approx(0.3 / 0.6)
    assert (pair.held_out, pair.loss, pair.count) == (pytest.approx(0.3), 1.5, 2)
    assert weak.reference("multitask").held_out == pytest.approx(0.4)


def test_effects_are_differences_and_slopes_among_likes(tmp_path):
    def merged(seed, size, quality, members, method):
        held_in = 0.4 + 0.01 * math.log2(SIZES[size]) + 0.02 * (quality == "strong")
        # The methods are 0.08 / 0.8 apart at the smallest size, half of it four times as large.
        held_in += 0.04 * (1 if method == "ties" else -1) / math.sqrt(SIZES[size] / 1e5)
        return held_in, 0.2 + (0.01 + 0.001 * seed) * len(members), 1.0

    judged = {one.claim.id: one for one in claims.judgements(write(tmp_path, merged))}
    found = {one.compared: one for own in judged.values() for one in own.findings}
    gap = found["held-in, best base less weakest"].effect
    assert gap.value == pytest.approx(0.02 / 0.8)
    assert found["held-in per doubling of parameters"].effect.value == pytest.approx(0.01 / 0.8)
    grows = found["held-out per expert"].effect
    assert grows.value == pytest.approx(0.012)
    # Three worlds at .011, .012, .013: t of two degrees of freedom.
    assert grows.high - grows.value == pytest.approx(4.302653 * 0.001 / math.sqrt(3), rel=1e-5)
    passes = found["held-out, merges of 8 less multitask, small"].effect
    assert passes.value == pytest.approx(0.2 + 8 * 0.012 - 0.4)
    # Deviations .05, .025, .0125 at log2 N that are 2 apart.
    spread = found["spread per doubling of parameters"]
    assert spread.effect.value == pytest.approx((0.0125 - 0.05) / 4)
    assert {id: one.verdict for id, one in judged.items()} == {
        "S1": "open",  # held-out scores do not depend on the base
        "S2": "holds",
        "S3": "does not hold",
        "S4": "holds",
    }


def test_one_world_decides_nothing(tmp_path):
    study = write(tmp_path, lambda *_: FLAT, seeds=[2])
    judged = claims.judgements(study)
    assert len(judged) == 4 and {one.verdict for one in judged} == {"open"}
    assert all(one.findings and math.isinf(one.findings[0].effect.high) for one in judged)


def law(parameters, k):
    return 0.6 + 0.5 * (parameters / 4e5) ** -0.4 + 0.9 * (parameters / 4e5) ** -0.15 / (k + 0.7)


def points(noise=0.0):
    draw = np.random.default_rng(0)
    return [
        Point(seed, size, n, k, float(law(n, k) + noise * draw.standard_normal()))
        for seed in (1, 2, 3)
        for size, n in {"tiny": 25_000, **SIZES}.items()
        for k in (1, 2, 4, 6, 8)
    ]


def test_the_law_is_found_again_and_predicts_what_it_did_not_see():
    every = points()
    found = fit([p.parameters for p in every], [p.count for p in every], [p.loss for p in every])
    assert found.error < 1e-6 and found.explained > 0.9999
    assert found(np.array([3e6]), np.array([12.0]))[0] == pytest.approx(law(3e6, 12), rel=1e-6)
    fitted, about = predictions(every, "large", 6)
    assert fitted.points == 3 * 3 * 4
    assert {one.what: one.points for one in about} == {"size": 12, "count": 9, "both": 3}
    assert all(one.error < 1e-6 < one.nearest for one in about)
    # The nearest of k = 6 is k = 4 or 8, of the largest size the one before.
    near = (law(4e5, 4) + law(4e5, 8)) / 2 / law(16e5, 6) - 1
    assert next(one for one in about if one.what == "both").nearest == pytest.approx(near)


def test_the_law_s_error_is_that_of_the_noise():
    every = points(noise=0.02)
    found = fit([p.parameters for p in every], [p.count for p in every], [p.loss for p in every])
    assert 0.012 < found.error < 0.022


def test_rank_correlation_is_scipy_s():
    from scipy.stats import spearmanr

    draw = np.random.default_rng(1)
    one, two = draw.integers(0, 5, 40).tolist(), draw.normal(size=40).tolist()
    assert predictors.rank_correlation(one, two) == pytest.approx(spearmanr(one, two).statistic)
    assert math.isnan(predictors.rank_correlation([1, 1, 1], [1, 2, 3]))


def samples(measure: Callable[[int, int, float], float]) -> list[predictors.Sample]:
    draw = np.random.default_rng(2)
    made = []
    for world in range(12):
        for place in range(10):
            outcome = float(draw.random())
            value = measure(world, place, outcome)
            made.append(
                predictors.Sample(world // 2, f"w{world}", place % 2, {"m": value}, outcome)
            )
    return made


def test_a_measure_that_orders_merges_earns_its_place_and_noise_does_not():
    # Falls with the outcome within every world, though worlds differ by more.
    (falls,) = predictors.worths(samples(lambda world, _, outcome: 10 * world - outcome))
    assert falls.left_out == falls.equal == predictors.Correlation(*[pytest.approx(1.0)] * 3)
    assert falls.earned and not falls.higher
    assert abs(falls.pooled) < 0.5 and (falls.worlds, falls.bases, falls.sets) == (6, 12, 120)
    noise = np.random.default_rng(3)
    (nothing,) = predictors.worths(samples(lambda *_: float(noise.random())))
    assert not nothing.earned and nothing.left_out.low < 0.1
    # Up in one half of the worlds and down in the other: the others' sign says nothing.
    (turns,) = predictors.worths(samples(lambda w, _, outcome: outcome * (1 if w // 2 % 2 else -1)))
    assert not turns.earned and turns.left_out.rho < 0
    # It says how many experts there are; among equally many it goes up and down by worlds.
    turning = samples(lambda w, _, outcome: outcome * (1 if w // 2 % 2 else -1))
    values = [({"m": 2 * s.count + s.measures["m"]}, 2 * s.count + s.outcome) for s in turning]
    (counts,) = predictors.worths(
        [
            replace(s, measures=measures, outcome=outcome)
            for s, (measures, outcome) in zip(turning, values, strict=True)
        ]
    )
    assert counts.higher and counts.left_out.low > 0.3 and not counts.earned


def test_the_experiment_s_own_worlds_are_samples_too(tmp_path):
    config = {
        "seeds": [1, 2, 3],
        "cases": {"c": {"experts": {"a": {"domain": ["s/x", "s/y"]}, "b": {"domain": ["s/z"]}}}},
        "methods": {"soup": {}, "ties": {}, "failed": {}},
    }

    def score(world, model, *values):
        folder = tmp_path / world / "scores" / "test"
        folder.mkdir(parents=True, exist_ok=True)
        tasks = {f"s/{t}": {"value": v} for t, v in zip("xyz", values, strict=True)}
        (folder / f"{model}.json").write_text(json.dumps({"tasks": tasks}))

    for place, world in enumerate(("c", "c-seed2", "c-seed3")):
        score(world, "a", 0.8, 0.8, 0.1)
        score(world, "b", 0.1, 0.1, 0.5)
        score(world, "soup", 0.4, 0.4, 0.5)  # (1/2 + 1) / 2
        score(world, "ties", 0.8, 0.0, 0.1 * place)  # (1/2 + place / 5) / 2
        together = {"cosine": {"a b": 0.1 * place}, "conflict": 0.5, "drift": {"a": 2, "b": 4}}
        (tmp_path / world / "inspection.json").write_text(json.dumps({"all": together}))
    found = default_run.samples_of(config, tmp_path)
    assert [sample.base for sample in found] == ["c", "c-seed2", "c-seed3"]
    assert found[1].outcome == pytest.approx((0.75 + 0.35) / 2)
    assert found[1].measures == {"cosine": 0.1, "conflict": 0.5, "drift": 3.0}
    correlations = default_run.correlations(found)
    assert correlations["cosine"] == pytest.approx(1.0) and math.isnan(correlations["drift"])
    (tmp_path / "c" / "inspection.json").unlink()
    assert len(default_run.samples_of(config, tmp_path)) == 2


def test_it_writes_tables_figures_and_the_record(tmp_path, capsys):
    def merged(seed, size, quality, members, method):
        return 0.5 - 0.02 * len(members) + 0.001 * seed, 0.3, float(law(SIZES[size], len(members)))

    write(tmp_path, merged, measure=lambda place, members: float(len(members)))
    config = tmp_path / "config.json"
    config.write_text(json.dumps(CONFIG))
    out = tmp_path / "out"
    given = ["--config", str(config), "--results", str(tmp_path), "--out", str(out)]
    assert call("studies.cli", ["scale", *given]) == 0
    page = capsys.readouterr().out
    assert "9 of 9 parts" in page and "| strong | TIES |" in page.replace("large | ", "")
    record = json.loads((out / "predictors.json").read_text())
    assert record["cosine"]["low"] == 1.0 and (
        record["cosine"]["worlds"],
        record["cosine"]["bases"],
    ) == (3, 18)
    assert not record["cosine"]["higher"]  # it is the number of experts, and merges get worse
    rows = (out / "scale.csv").read_text().splitlines()
    assert len(rows) == 1 + 9 * 2 * (2 * len(list(sets())) + 2)
    for name in ("scale_held_in", "scale_held_out", "scale_law"):
        assert (out / f"{name}.png").read_bytes().startswith(b"\x89PNG")
    assert set(json.loads((out / "manifest.json").read_text())["inputs"]) == {
        f"{size}-seed{seed}.json" for size in SIZES for seed in (1, 2, 3)
    }


def test_nothing_to_read_and_a_wrong_part_are_refused(tmp_path):
    with pytest.raises(UserError, match="no part has been run; run python -m workflow study scale"):
        load(CONFIG, tmp_path)
    write(tmp_path, lambda *_: FLAT, seeds=[1])
    (tmp_path / "studies/scale/parts/small-seed1.json").write_text("{}")
    with pytest.raises(UserError, match=r"small-seed1\.json: is no part of the study of scale"):
        load(CONFIG, tmp_path)
