"""Whole searches on tiny models: what is written is what was scored."""

from __future__ import annotations

import csv
import itertools
import json
import os
import shutil
import signal
import time

import pytest
import torch
from safetensors.torch import load_file, save_file

import merges.engine.run
from checkpoints.reading import Checkpoint
from common.errors import UserError
from common.files import read_json, read_jsonl, write_jsonl
from merges.engine.config import MergeConfig
from merges.engine.layer_rules import LayerRules
from merges.engine.run import merge_to_disk
from search.cli import main
from search.merged import ListedSpace
from search.parameters import ParameterSpace


@pytest.fixture(scope="session", autouse=True)
def libraries():
    """Import what takes seconds only when the tests run: collecting them stays quick."""
    global Allocated, Harness, Workbench, load_model
    from evaluation.backends.hf import load_model
    from evaluation.harness import Harness
    from search.workbench import Allocated, Workbench


def history(folder):
    with open(folder / "search.csv", encoding="utf-8") as stream:
        return list(csv.DictReader(stream))


def merging(world, method, experts=("a", "b"), **settings):
    models = {name: Checkpoint(world / name) for name in experts}
    return MergeConfig(method, Checkpoint(world / "base"), models, **settings)


def same_weights(first, second):
    first, second = Checkpoint(first), Checkpoint(second)
    return all(torch.equal(first.load(name), second.load(name)) for name in first.names())


def test_tuning_writes_the_best_candidate_s_merge(world, command, tmp_path):
    candidates = [{"scale": 0.0}, {"scale": 0.4}, {"scale": 0.8}]
    arguments = ["--candidates", json.dumps(candidates), "--out", tmp_path / "out"]
    assert main(command("tune", *arguments)) == 0
    tried = history(tmp_path / "out")
    assert [float(row["scale"]) for row in tried] == [0.0, 0.4, 0.8]
    averages = [float(row["dev_average"]) for row in tried]
    manifest = read_json(tmp_path / "out" / "manifest.json")
    chosen = manifest["parameters"]["search"]["chosen"]
    assert chosen == averages.index(max(averages))
    assert manifest["parameters"]["set"]["scale"] == candidates[chosen]["scale"]
    parents = {name: Checkpoint(world / name) for name in ("a", "b")}
    base = Checkpoint(world / "base")
    merge_to_disk(
        tmp_path / "again", MergeConfig("task_arithmetic", base, parents, candidates[chosen])
    )
    written, again = (Checkpoint(tmp_path / name) for name in ("out", "again"))
    assert written.fingerprint == again.fingerprint


def test_a_method_that_learns_is_tuned_and_its_best_run_is_kept(
    world, command, tmp_path, monkeypatch
):
    words = (f"w{number % 44 + 4}" for number in itertools.count())
    row = {"task": "t", "eos": True}
    rows = [row | {"prompt": next(words), "answer": f" {next(words)}"} for _ in range(8)]
    write_jsonl(tmp_path / "rows.jsonl", rows)
    runs, run = [], merges.engine.run.merge_checkpoints

    def counted(config):
        runs.append(config.parameters)
        return run(config)

    monkeypatch.setattr(merges.engine.run, "merge_checkpoints", counted)
    candidates = [{"initial": 0.1}, {"initial": 0.4}, {"initial": 0.7}]
    calibration = [f"{name}={tmp_path / 'rows.jsonl'}" for name in ("a", "b")]
    given = ["--candidates", json.dumps(candidates), "--set", "samples=4"]
    given += ["--calibration", *calibration, "--out", tmp_path / "out"]
    assert main(command("tune", *given, method="adamerging")) == 0
    assert [parameters["initial"] for parameters in runs] == [0.1, 0.4, 0.7]
    recipe = read_json(tmp_path / "out" / "manifest.json")["parameters"]
    averages = [float(row["dev_average"]) for row in history(tmp_path / "out")]
    assert recipe["set"]["initial"] == candidates[averages.index(max(averages))]["initial"]
    merge_to_disk(
        tmp_path / "again",
        MergeConfig(
            "adamerging",
            Checkpoint(world / "base"),
            {name: Checkpoint(world / name) for name in ("a", "b")},
            recipe["set"],
            calibration=dict.fromkeys(("a", "b"), tmp_path / "rows.jsonl"),
        ),
    )
    assert same_weights(tmp_path / "out", tmp_path / "again")
    for name in ("training.csv", "extra/coefficients.safetensors"):
        written, again = (tmp_path / folder / name for folder in ("out", "again"))
        assert written.read_bytes() == again.read_bytes()


@pytest.mark.parametrize(
    ("method", "experts", "extra"),
    [
        ("task_arithmetic", "ab", ()),
        ("dare_ties", "abc", ("--kinds", "separate")),
        ("slerp", "ab", ("--granularity", "2", "--embeddings-and-norms", "base")),
    ],
)
def test_the_winner_of_a_search_can_be_rebuilt_from_its_manifest(
    world, command, tmp_path, method, experts, extra
):
    for name in ("out", "out2"):
        given = ["--budget", "9", "--seed", "3", *extra, "--out", tmp_path / name]
        assert main(command("evolve", *given, method=method, experts=experts)) == 0
    assert len(history(tmp_path / "out")) == 9
    first, second = (tmp_path / name / "manifest.json" for name in ("out", "out2"))
    assert first.read_bytes() == second.read_bytes()
    recipe = read_json(first)["parameters"]
    merge_to_disk(
        tmp_path / "again",
        MergeConfig(
            recipe["method"],
            Checkpoint(world / "base"),
            {name: Checkpoint(world / name) for name in recipe["experts"]},
            recipe["set"],
            seed=3,
            embeddings_and_norms=recipe["embeddings_and_norms"],
            parameters_for=LayerRules(recipe["method"], recipe.get("set_layers") or []),
        ),
    )
    assert same_weights(tmp_path / "out", tmp_path / "again")
    assert not (tmp_path / "out.search").exists()


@pytest.mark.parametrize("method", ["task_arithmetic", "ties", "dare_ties"])
def test_a_candidate_in_memory_scores_as_it_does_written_and_read_back(
    world, command, tmp_path, method
):
    assert main(command("evolve", "--budget", "7", "--out", tmp_path / "out", method=method)) == 0
    search = read_json(tmp_path / "out" / "manifest.json")["parameters"]["search"]
    row = history(tmp_path / "out")[search["chosen"]]
    harness = Harness(world / "data", ["bottle_kobest/copa"], "dev", world / "base")
    scores, items = harness.evaluate_with_items(load_model(tmp_path / "out"))
    assert float(row["bottle_kobest/copa"]) == scores["tasks"]["bottle_kobest/copa"]["value"]
    # Item by item the model that became the candidate after others answers the same, to the bit.
    space = ParameterSpace(merging(world, method, seed=0), {})
    allocated = Allocated(Checkpoint(world / "base"))
    for row in history(tmp_path / "out")[search["chosen"] :: -1]:
        recipe = space.decode([float(row[gene.name]) for gene in space.genes])
        allocated.become(space, recipe)
    for row in history(tmp_path / "out")[: search["chosen"] + 1]:
        recipe = space.decode([float(row[gene.name]) for gene in space.genes])
        allocated.become(space, recipe)
    assert harness.evaluate_with_items(allocated.model)[1] == items


def test_only_what_changed_is_overwritten(world):
    space = ParameterSpace(merging(world, "ties"), {}, kinds="separate")
    allocated = Allocated(Checkpoint(world / "base"))
    values = [gene.start for gene in space.genes]
    everything = len(Checkpoint(world / "base").names())
    written = []
    for place in (None, None, "layer 1 mlp", "lm_head", "layer 0 norms"):
        values = [
            v + 0.125 * (gene.group == place) for gene, v in zip(space.genes, values, strict=True)
        ]
        allocated.become(space, space.decode(values))
        written.append(allocated.written)
    assert written == [everything, 0, 3, 1, 2]
    expected, _ = space.tensors(space.decode(values))
    for name, parameter in allocated.model.state_dict().items():
        assert torch.equal(parameter, expected[name])


@pytest.fixture
def huge(world, tmp_path):
    """Expert b with an output head that makes the logits of a merge infinite."""
    shutil.copytree(world / "b", tmp_path / "huge")
    tensors = load_file(tmp_path / "huge" / "model.safetensors")
    tensors["lm_head.weight"] *= 1e38
    save_file(tensors, tmp_path / "huge" / "model.safetensors", metadata={"format": "pt"})
    return tmp_path / "huge"


# The second merge's logits are infinite, the fourth's weights are.
SCALES = [{"scale": scale} for scale in (0.0, 2.0, 0.0, 3e38, 0.0)]


def test_a_candidate_that_fails_is_recorded_and_leaves_no_trace(world, huge):
    experts = {"a": Checkpoint(world / "a"), "b": Checkpoint(huge)}
    base, task = Checkpoint(world / "base"), "bottle_kobest/copa"
    space = ListedSpace(MergeConfig("task_arithmetic", base, experts), {}, SCALES)
    bench = Workbench(space, base, world / "data", [task], [[task]])
    done = [bench.evaluate(n, [float(n)]) for n in range(5)]
    assert "not finite" in done[1].failure and "overflows" in done[3].failure
    for failed in (done[1], done[3]):
        assert failed.average is None and not failed.tasks and "\n" not in failed.failure
    assert done[0].average == done[2].average == done[4].average is not None


def test_a_search_goes_on_behind_failures_and_of_failures_alone_nothing_is_written(
    command, huge, tmp_path
):
    def tune(candidates, out):
        given = command("tune", "--candidates", json.dumps(candidates), "--out", out)
        return main([f"b={huge}" if arg.startswith("b=") else arg for arg in given])

    assert tune(SCALES, tmp_path / "out") == 0
    rows = history(tmp_path / "out")
    assert [bool(row["failure"]) for row in rows] == [False, True, False, True, False]
    assert [row["dev_average"] == "" for row in rows] == [False, True, False, True, False]
    assert read_json(tmp_path / "out" / "manifest.json")["parameters"]["search"]["chosen"] == 0
    with pytest.raises(UserError, match="all 1 candidates failed, the first with: "):
        tune(SCALES[3:4], tmp_path / "none")
    assert not (tmp_path / "none").exists() and not (tmp_path / "none.search").exists()


def test_a_killed_search_ends_as_one_that_was_not(world, command, tmp_path):
    def given(name):
        return command("evolve", "--budget", "24", "--seed", "5", "--out", tmp_path / name)

    torch.set_num_threads(1)  # a pool of threads would not survive the fork
    state = tmp_path / "out.search" / "state.json"
    child = os.fork()
    if child == 0:
        try:
            main(given("out"))
        finally:
            os._exit(1)
    while os.waitpid(child, os.WNOHANG) == (0, 0):
        if state.is_file() and len(read_json(state)["evaluations"]) >= 8:
            os.kill(child, signal.SIGKILL)
            assert os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGKILL
            break
        time.sleep(0.002)
    before = len(read_json(state)["evaluations"])
    assert 8 <= before < 24 and not (tmp_path / "out").exists()
    assert main(given("out")) == 0
    assert main(given("whole")) == 0
    for name in ("manifest.json", "search.csv", "model.safetensors"):
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    counted = read_json(tmp_path / "out" / "cost.json")["counted"]
    assert counted["evaluations"] == 24 and counted["earlier_cpu_s"] > 0
    whole = read_json(tmp_path / "whole" / "cost.json")["counted"]
    assert counted["dev_tokens"] == whole["dev_tokens"]
    assert not state.parent.exists()


def test_a_full_disk_leaves_the_state_whole(world, command, tmp_path, monkeypatch):
    out, state = tmp_path / "out", tmp_path / "out.search" / "state.json"
    import search.state

    real, calls = search.state.write_text, []

    def full(path, text):
        calls.append(path)
        if len(calls) == 5:
            # What the system does: some bytes go out, then the disk is full.
            def no_space(descriptor):
                raise OSError(28, "No space left on device")

            with monkeypatch.context() as patch:
                patch.setattr("common.files.os.fsync", no_space)
                real(path, text)
        real(path, text)

    monkeypatch.setattr(search.state, "write_text", full)
    with pytest.raises(UserError, match=r"the disk is full while writing .*state.json"):
        main(command("evolve", "--budget", "9", "--out", out))
    assert len(read_json(state)["evaluations"]) == 4
    assert [path.name for path in state.parent.iterdir()] == ["state.json"] and not out.exists()
    assert main(command("evolve", "--budget", "9", "--out", out)) == 0
    assert main(command("evolve", "--budget", "9", "--out", tmp_path / "whole")) == 0
    for name in ("manifest.json", "search.csv"):
        assert (out / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_a_part_of_the_items_as_fitness_and_how_well_it_ranks(world, command, tmp_path):
    given = ["--budget", "12", "--fitness-items", "5", "--rescored", "6"]
    assert main(command("evolve", *given, "--out", tmp_path / "out")) == 0
    rows = history(tmp_path / "out")
    fitness = read_json(tmp_path / "out" / "manifest.json")["parameters"]["search"]["fitness"]
    again = [row for row in rows if row["full_average"]]
    assert len(again) == 6 == fitness["rescored"] and fitness["items"] == 5
    for row in rows:  # a fifth is a share of five items
        assert float(row["dev_average"]) * 5 == pytest.approx(round(float(row["dev_average"]) * 5))
    # The full average is that of a search over the same candidates on all items.
    space = ParameterSpace(merging(world, "task_arithmetic"), {})
    task = "bottle_kobest/copa"
    bench = Workbench(space, Checkpoint(world / "base"), world / "data", [task], [[task]])
    for row in again[:3]:
        genome = [float(row[gene.name]) for gene in space.genes]
        assert bench.evaluate(0, genome).average == float(row["full_average"])
    counted = read_json(tmp_path / "out" / "cost.json")["counted"]
    assert (counted["evaluations"], counted["rescored"]) == (12, 6)
    # Four choices an item: twelve candidates on five items, six on all twelve.
    assert counted["dev_requests"] == (12 * 5 + 6 * 12) * 4
    assert fitness["spearman"] is None or -1 <= fitness["spearman"] <= 1


@pytest.mark.parametrize(
    ("method", "extra"), [("dare_ties", ("--kinds", "separate")), ("ties", ())]
)
def test_a_shorter_search_is_read_off_its_record(world, command, tmp_path, method, extra):
    for budget in (5, 14):
        given = ["--budget", budget, *extra, "--seed", "2", "--out", tmp_path / f"out{budget}"]
        assert main(command("evolve", *given, method=method)) == 0
    given = ["--of", tmp_path / "out14", "--evaluations", "5", "--out", tmp_path / "replayed"]
    assert main(command("replay", *given, method=None, data=False)) == 0
    assert same_weights(tmp_path / "replayed", tmp_path / "out5")
    first, second = (
        read_json(tmp_path / name / "manifest.json")["parameters"]["search"]
        for name in ("replayed", "out5")
    )
    for key in ("chosen", "dev_average", "evaluations"):
        assert first[key] == second[key]
    # Other models, or more evaluations than there are, are refused.
    for change, message in (
        ({"experts": "ac"}, "give these models"),
        ({"experts": "abc"}, "give these models"),
    ):
        with pytest.raises(UserError, match=message):
            main(command("replay", *given, method=None, data=False, **change))
    given[3] = "15"
    with pytest.raises(UserError, match="has 14 evaluations, not 15"):
        main(command("replay", *given, method=None, data=False))
    swapped = command("replay", *given[:2], "--evaluations", "3", *given[4:], data=False)
    swapped = [arg.replace(f"a={world / 'a'}", f"a={world / 'c'}") for arg in swapped]
    with pytest.raises(UserError, match="not the model that"):
        main(swapped)


def test_an_item_of_dev_and_test_stops_a_search(world, command, tmp_path):
    data = tmp_path / "data"
    shutil.copytree(world / "data", data)
    path = data / "test" / "bottle_kobest" / "copa.jsonl"
    dev = read_jsonl(world / "data" / "dev" / "bottle_kobest" / "copa.jsonl")
    # The same question in other spaces, with the choices in another order.
    leaked = dict(dev[7], id="test-x", prompt=dev[7]["prompt"].replace(" ", "\u3000 "))
    leaked |= {"choices": dev[7]["choices"][::-1], "gold": 3 - dev[7]["gold"]}
    write_jsonl(path, [*read_jsonl(path), leaked])
    given = command("evolve", "--budget", "2", "--out", tmp_path / "out", data=False)
    given += ["--data", str(data), "--suites", "bottle_kobest/copa"]
    with pytest.raises(UserError, match=r"task bottle_kobest/copa: dev item dev-7 .*test-x"):
        main(given)
    assert not (tmp_path / "out").exists() and not (tmp_path / "out.search").exists()
    # Another answer makes it another item.
    write_jsonl(path, [leaked | {"gold": dev[7]["gold"]}])
    assert main(given) == 0


def test_mistakes_are_told_before_anything_is_written(world, command, tmp_path):
    out = ["--out", tmp_path / "out"]
    evolve = ["--budget", "2", *out]
    (world / "data" / "dev" / "bottle_kobest" / "wic.jsonl").write_text("")
    for given, message in (
        (command("tune", "--candidates", '[{"scal": 1}]', *out), "did you mean 'scale'"),
        (command("tune", "--candidates", "[", *out), "--candidates: not valid JSON"),
        (command("tune", "--candidates", "[3]", *out), "each must be a mapping"),
        (command("tune", "--candidates", "[{}]", "--budget", "3", *out), "no use for --budget"),
        (command("evolve", *out), "needs --budget N"),
        (command("evolve", "--budget", "0", *out), "budget of 0"),
        (command("evolve", "--seconds", "0", *out), "budget of 0 seconds"),
        (command("evolve", "--population", "3", *evolve), "population of 3 does not fit"),
        (command("evolve", *evolve, method="iso_c"), "no searchable parameters"),
        (command("evolve", *evolve, method="slerp", experts="abc"), "exactly 2 experts"),
        (command("evolve", "--suites", "bottle_kobest/wic", *evolve), "has no items"),
        (command("evolve", "--suites", "bottle_kobest/boolq", *evolve), "has no items"),
        (command("evolve", "--fitness-items", "0", *evolve), "--fitness-items: give 1"),
        (command("evolve", "--average", '[["x/y"]]', *evolve), "needs task 'x/y'"),
        (command("evolve", "--average", '["x/y"]', *evolve), "columns, each a list"),
        (command("evolve", "--repeats", "2", *evolve), "no use for --repeats"),
        (command("evolve", "--granularity", "0", *evolve), "granularity of 0"),
        (command("replay", "--of", tmp_path, *out), "replay needs --of DIR and --evaluations"),
        (command("replay", "--of", tmp_path, "--evaluations", "1", *out), "no such file"),
    ):
        with pytest.raises(UserError, match=message):
            main(given)
        assert not (tmp_path / "out").exists() and not (tmp_path / "out.search").exists()


def test_a_state_of_other_settings_is_refused_and_kept(world, command, tmp_path, monkeypatch):
    import search.workbench

    real, seen = search.workbench.Workbench.evaluate, []

    def evaluate(self, index, genome):
        seen.append(index)
        if index == 4:
            raise KeyboardInterrupt
        return real(self, index, genome)

    monkeypatch.setattr(search.workbench.Workbench, "evaluate", evaluate)
    given = ["--budget", "9", "--out", tmp_path / "out"]
    with pytest.raises(KeyboardInterrupt):
        main(command("evolve", *given))
    monkeypatch.setattr(search.workbench.Workbench, "evaluate", real)
    state = (tmp_path / "out.search" / "state.json").read_bytes()
    for extra, what in ((["--seed", "1"], "seed"), (["--sigma", "0.2"], "settings")):
        with pytest.raises(UserError, match=f"an unfinished search with another {what}; "):
            main(command("evolve", *given, *extra))
    with pytest.raises(UserError, match=r"another .*space"):
        main(command("evolve", *given, "--granularity", "2"))
    assert (tmp_path / "out.search" / "state.json").read_bytes() == state
    assert main(command("evolve", *given)) == 0
