"""Methods that know the experts' data, against their formulas in float64 and worked numbers."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from checkpoints.reading import Checkpoint
from common.errors import UserError
from merges import cli
from merges.engine import registry
from merges.engine.run import merge_tensors
from merges.statistics.collecting import Order
from merges.statistics.files import Statistics, read_rows, write_statistics
from tests.merges.dam_world import make_world, write_rows
from tests.merges.fake_statistics import Given, drawn

NAME = "model.layers.0.mlp.up_proj.weight"


def tensor(*rows) -> torch.Tensor:
    return torch.tensor(rows, dtype=torch.float64)


def given(kind: str, **what: torch.Tensor) -> Given:
    return Given(kind, {(NAME, key): value for key, value in what.items()})


def merged(method, base, experts, statistics, **parameters) -> torch.Tensor:
    models = {f"e{number}": {NAME: expert.clone()} for number, expert in enumerate(experts)}
    if not isinstance(statistics, dict):
        statistics = dict(zip(models, statistics, strict=True))
    wrapped = None if base is None else {NAME: base.clone()}
    return merge_tensors(method, wrapped, models, parameters, statistics=statistics)[NAME]


def close(found: torch.Tensor, expected, atol: float = 1e-9) -> None:
    expected = torch.as_tensor(expected, dtype=found.dtype)
    torch.testing.assert_close(found, expected.view_as(found), rtol=0, atol=atol)


GRAMS = (tensor([2, 1], [1, 1]), tensor([1, 0], [0, 3]))


@pytest.mark.parametrize(
    ("alpha", "expected"),
    [
        (1.0, (4 / 11, 10 / 11)),
        (0.9, (0.401251, 0.884718)),
        (0.1, (0.641368, 0.758966)),
        (0.0, (2 / 3, 3 / 4)),
    ],
)
def test_regmean_gives_the_worked_numbers(alpha: float, expected: tuple[float, ...]) -> None:
    own = [given("gram", gram=gram) for gram in GRAMS]
    experts = [tensor([1, 0]), tensor([0, 1])]
    close(merged("regmean", None, experts, own, alpha=alpha, ridge=0), [expected], 1e-6)


def test_regmean_keeps_the_centre_where_no_input_was() -> None:
    own = [given("gram", gram=tensor([2, 0], [0, 0])), given("gram", gram=tensor([1, 0], [0, 0]))]
    experts, base = [tensor([1, 5]), tensor([4, 7])], tensor([0, 3])
    close(merged("regmean", None, experts, own), [[2, 6]], 1e-5)
    close(merged("regmean", base, experts, own, origin="base"), [[2, 3]], 1e-5)
    with pytest.raises(UserError, match=f"tensor {NAME}: its inputs' Gram matrices are singular"):
        merged("regmean", None, experts, own, ridge=0)
    dead = [given("gram", gram=torch.zeros(2, 2, dtype=torch.float64))] * 2
    close(merged("regmean", None, experts, dead, ridge=0), [[2.5, 6]])


def test_regmean_is_the_least_squares_solution_over_the_inputs_themselves() -> None:
    rng = np.random.default_rng(3)
    inputs = [rng.normal(size=(50, 6)) for _ in range(3)]
    weights = [rng.normal(size=(4, 6)) for _ in range(3)]
    rows = np.concatenate([x / np.sqrt(len(x)) for x in inputs])
    targets = np.concatenate(
        [x @ w.T / np.sqrt(len(x)) for x, w in zip(inputs, weights, strict=True)]
    )
    expected = np.linalg.lstsq(rows, targets, rcond=None)[0].T
    own = [given("gram", gram=torch.tensor(x.T @ x / len(x))) for x in inputs]
    experts = [torch.tensor(w) for w in weights]
    found = merged("regmean", None, experts, own, alpha=1.0, ridge=0)
    close(found, expected, 1e-10)
    scaled = [given("gram", gram=7 * torch.tensor(x.T @ x / len(x))) for x in inputs]
    close(merged("regmean", None, experts, scaled, alpha=1.0), found, 1e-4)
    same = [own[0]] * 3
    close(merged("regmean", None, experts, same), torch.stack(experts).mean(0), 1e-9)
    weighted = merged("regmean", None, experts, own, weights=[1, 0, 0])
    close(weighted, experts[0], 1e-9)


def test_fisher_weighs_by_precision() -> None:
    experts = [tensor([1, 1, 4]), tensor([5, 5, 8])]
    for method, kind in [("fisher", "fisher"), ("fisher_empirical", "empirical_fisher")]:
        own = [given(kind, values=tensor([3, 0, 1])), given(kind, values=tensor([1, 0, 1e12]))]
        close(merged(method, None, experts, own, normalize=False, floor=0), [[2, 3, 8]], 1e-6)
    values = [tensor([3, 1, 2]), tensor([2, 5, 1])]
    own = [given("fisher", values=value) for value in values]
    f, g = (value / value.norm() for value in values)
    close(merged("fisher", None, experts, own), (f * experts[0] + g * experts[1]) / (f + g))
    # A floor of ten means leaves no difference.
    close(merged("fisher", None, experts, own, floor=10, normalize=False), [
        [(20 * 1 + 80 / 3 * 5) / (20 + 80 / 3)] * 2 + [(20 * 4 + 80 / 3 * 8) / (20 + 80 / 3)]
    ])  # fmt: skip
    double = merged("fisher", None, experts, own, weights=[2, 1])
    close(double, (2 * f * experts[0] + g * experts[1]) / (2 * f + g))


def test_aim_draws_back_where_the_base_is_active() -> None:
    own = {"base": given("channels", mean_abs=tensor([4, 1])[0])}
    base, model = tensor([1, 1], [0, 0]), tensor([2, 2], [1, -1])
    close(merged("aim", base, [model], own), [[1.4, 1.85], [0.4, -0.85]], 1e-7)
    assert torch.equal(merged("aim", base, [model], own, omega=1.0), model)
    close(merged("aim", base, [model], own, peak=0.0), base + 0.4 * (model - base), 1e-7)
    none = {"base": Given("channels", {})}
    assert torch.equal(merged("aim", base, [model], none), model)
    with pytest.raises(UserError, match="merges exactly 1 expert"):
        merged("aim", base, [model, model], own)


def test_ota_averages_what_grafting_keeps() -> None:
    v, base = [tensor([4, 1]), tensor([1, 1])], tensor([0, 0])
    experts = [tensor([1, 1]), tensor([3, 3])]
    own = [given("empirical_fisher", values=value) for value in v]
    close(merged("ota", base, experts, own, density=1.0), [[5 / 3, 2]])
    # Scores (4, 1) and (9, 9): a half of each is its first two values and one of the two others.
    close(merged("ota", base, experts, own, density=0.5), [[5 / 3, 0]])
    third = tensor([1, 1, 0, 0]), tensor([3, 3, 0, 0])
    own = [given("empirical_fisher", values=torch.cat([w, tensor([1, 1])], 1)) for w in v]
    found = merged("ota", torch.zeros(1, 4).double(), third, own, density=0.5)
    close(found, [[5 / 3, 2, 0, 0]])
    close(merged("ota", base, experts, [given("empirical_fisher")] * 2), [[2, 2]])


def test_led_keeps_what_one_expert_and_the_base_elect() -> None:
    base = tensor([1, 2, -3, 4, 1])
    experts = [base + tensor([1, 1, 1, 1, 1]), base + tensor([2, 2, 2, 2, 2])]
    # Scores of the base: 4 2 3 40 1, of the experts: 2 30 -2*8 0 2 and 30 4 1 60 3.
    own = {
        "base": given("gradients", values=tensor([4, 1, 1, 10, 1])),
        "e0": given("gradients", values=tensor([1, 10, 8, 0, 1])),
        "e1": given("gradients", values=tensor([10, 1, 1, 10, 1])),
    }
    # Three of five: the base elects 0, 2, 3; expert 0 elects 0 (first of equals), 1, 2;
    # expert 1 elects 0, 1, 3. Together with the base: {0, 2} and {0, 3}, alone {2} and {3}.
    found = merged("led", base, experts, own, density=0.6, scale=0.5)
    close(found - base, [[0, 0, 0.5, 1, 0]])


FACTORS = (tensor([2, 0], [0, 1]), tensor([1, 0.5], [0.5, 1]))
PAIR = (tensor([1, 2], [0, 1]), tensor([0, 1], [1, 0]))


def kronecker() -> list[Given]:
    pairs = zip(GRAMS, FACTORS, strict=True)
    return [given("kronecker", gram=gram, output_gram=factor) for gram, factor in pairs]


def test_mats_reaches_the_kronecker_systems_solution_in_four_steps() -> None:
    left = sum(np.kron(b.numpy(), g.numpy()) for b, g in zip(FACTORS, GRAMS, strict=True))
    right = sum(
        b.numpy() @ w.numpy() @ g.numpy() for b, w, g in zip(FACTORS, PAIR, GRAMS, strict=True)
    )
    expected = np.linalg.solve(left, right.ravel()).reshape(2, 2)
    assert np.allclose(expected, [[1.108331, 1.358248], [0.483701, -0.005268]], atol=1e-6)
    base = torch.zeros(2, 2, dtype=torch.float64)
    close(merged("mats", base, PAIR, kronecker(), steps=4, tolerance=0), expected, 1e-9)
    one = merged("mats", base, PAIR, kronecker(), steps=1, initial=0.5)
    close(one, [[1.105178, 1.444984], [0.444984, 0.004854]], 1e-6)
    close(merged("mats", base, PAIR, kronecker(), steps=0), 0.3 * (PAIR[0] + PAIR[1]))


def test_mats_with_equal_outputs_is_regmean() -> None:
    eye = torch.eye(2, dtype=torch.float64)
    own = [given("kronecker", gram=gram, output_gram=eye) for gram in GRAMS]
    base = torch.zeros(2, 2, dtype=torch.float64)
    found = merged("mats", base, PAIR, own, tolerance=0, alpha=0.9)
    grams = [given("gram", gram=gram) for gram in GRAMS]
    close(found, merged("regmean", None, PAIR, grams, alpha=0.9, ridge=0), 1e-9)


def rows_of(order: Order, kind: str, out: Path) -> Statistics:
    write_statistics(dataclasses.replace(order, kind=kind), out)
    return Statistics(out)


def test_regmean_plus_is_regmean_of_experts_behind_the_merged_layers(
    tmp_path: Path, make_model: Callable
) -> None:
    request = make_world(tmp_path, make_model, "llama", torch.float32)
    base = load_file(tmp_path / "base" / "model.safetensors")
    names, embedding = list(request.experts)[:2], "model.embed_tokens.weight"
    weights = {}
    for name in names:
        path = tmp_path / name / "model.safetensors"
        weights[name] = load_file(path) | {embedding: base[embedding]}
        save_file(weights[name], path, metadata={"format": "pt"})
    experts = {name: Checkpoint(tmp_path / name) for name in names}
    data = {name: write_rows(tmp_path / f"{name}.jsonl", 3, rows=6) for name in names}
    request = dataclasses.replace(
        request, experts=experts, calibration=data, embeddings_and_norms="merged"
    )
    found = registry.load("regmean_plus")(request, alpha=0.8, ridge=1e-6, rows=0).tensors

    def regmean(at: str) -> dict[str, torch.Tensor]:
        """RegMean of the experts as they are on disk now, with their own statistics."""
        own = {}
        for name in names:
            model = Checkpoint(tmp_path / name)
            data = read_rows(model, [request.calibration[name]], name)
            own[name] = rows_of(Order(model, data, "gram"), "gram", tmp_path / f"{at}-{name}")
        return merge_tensors("regmean", None, weights, {"alpha": 0.8}, statistics=own)

    for number, part in enumerate(["model.layers.0.", "model.layers.1.", "lm_head."]):
        expected = regmean(part)
        names_of = [name for name in base if name.startswith(part)]
        assert len(names_of) == (1 if part == "lm_head." else 9)
        for name in names_of:
            torch.testing.assert_close(found[name], expected[name], rtol=1e-3, atol=1e-4)
        if number == 0:
            assert any(
                not torch.allclose(found[n], expected[n], atol=1e-3) for n in base if ".1." in n
            )
        # The next layer's inputs come through what was merged: every expert begins with it.
        for name in names:
            weights[name] |= {n: found[n] for n in base if n.startswith(part)}
            if part == "model.layers.1.":
                weights[name]["model.norm.weight"] = found["model.norm.weight"]
            path = tmp_path / name / "model.safetensors"
            save_file({k: v.contiguous() for k, v in weights[name].items()}, path, {"format": "pt"})
    assert torch.allclose(found[embedding], base[embedding])


INFORMED = [name for name, info in registry.describe().items() if info.statistics]


@pytest.mark.parametrize("method", INFORMED)
def test_what_has_no_statistics_is_averaged(method: str) -> None:
    info = registry.info(method)
    base = tensor([1, 2], [3, 4])
    experts = [base + 1, base + 3][: info.experts or 2]
    own = drawn(method, [f"e{n}" for n in range(len(experts))], {"other": (2, 2)})
    mean = torch.stack(experts).mean(0)
    scale = 0.9 if method == "led" else 1.0
    close(merged(method, base, experts, own), base + scale * (mean - base), 1e-12)


def test_statistics_are_asked_for_and_checked(
    llama: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"prompt": "w1 w2", "answer": " w3", "eos": true}\n' * 3)

    def statistics(name: str, kind: str = "gram", source: str = "") -> str:
        out = tmp_path / f"{name}-{kind}{source}"
        model = str(llama / (source or name))
        if not out.exists():
            given = ["--model", model, "--calibration", str(rows), "--collect", kind]
            assert cli.main(["statistics", *given, "--out", str(out)]) == 0
        return f"{name}={out}"

    experts = [f"{name}={llama / name}" for name in ("ja", "math")]
    command = ["--method", "regmean", "--experts", *experts, "--out", str(tmp_path / "merged")]
    for wrong, message in [
        ([], r"needs statistics \(gram\) of ja; make them with python -m merges statistics"),
        ([statistics("ja")], r"needs statistics \(gram\) of math"),
        ([statistics("ja", "channels"), statistics("math")], "needs gram, these are channels"),
        ([statistics("ja", source="sql"), statistics("math")], "those of another checkpoint"),
        ([statistics("ja"), statistics("math"), statistics("sql")], "takes no statistics of 'sql'"),
    ]:
        with pytest.raises(UserError, match=message):
            cli.main([*command, *(["--statistics", *wrong] if wrong else [])])
    capsys.readouterr()
    own = [statistics("ja"), statistics("math")]
    assert cli.main([*command, "--statistics", *own]) == 0
    assert (
        "statistics of ja: 15 tokens for the 48 inputs of model.layers.0.mlp.down_proj and 8 more; "
        "where no token speaks, the ridge of 1e-06 decides" in capsys.readouterr().err
    )
    manifest = (tmp_path / "merged" / "manifest.json").read_text()
    assert '"gram.ja"' in manifest
    # Statistics that name their model by the hash that weights had before are its own too.
    path = tmp_path / "ja-gram" / "manifest.json"
    about = json.loads(path.read_text())
    digest = hashlib.sha256((llama / "ja" / "model.safetensors").read_bytes()).hexdigest()
    line = f"model.safetensors {digest}\n".encode()
    about["extra"]["model"] = hashlib.sha256(line).hexdigest()
    path.write_text(json.dumps({name: own for name, own in about.items() if name != "sha256"}))
    assert cli.main([*command, "--statistics", *own]) == 0
    models = [Checkpoint(llama / name) for name in ("ja", "math")]
    found, weight = Checkpoint(tmp_path / "merged"), "model.layers.1.self_attn.v_proj.weight"
    grams = [Statistics(Path(item.split("=")[1])).matrix(weight, "gram").double() for item in own]
    grams = [0.9 * gram + 0.1 * gram.diag().diag() for gram in grams]
    total = sum(grams)
    ridge = 1e-6 * total.diag().mean()
    products = [model.load(weight).double() @ g for model, g in zip(models, grams, strict=True)]
    mean = sum(model.load(weight).double() for model in models) / 2
    eye = torch.eye(len(total), dtype=torch.float64)
    expected = torch.linalg.solve(total + ridge * eye, (sum(products) + ridge * mean).T).T
    torch.testing.assert_close(found.load(weight).double(), expected, rtol=1e-4, atol=1e-5)
    with pytest.raises(UserError, match=r"merged: is no earlier folder of statistics"):
        cli.main(["statistics", "--model", str(llama / "ja"), "--calibration", str(rows),
                  "--out", str(tmp_path / "merged")])  # fmt: skip
