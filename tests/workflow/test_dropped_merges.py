"""Merged models of the ablation that are not kept: same tables, nothing built twice."""

import pytest

pytestmark = pytest.mark.workflow


@pytest.fixture
def dropping(project):
    """The reproduced project, told to drop the ablation's models; one objective, two seeds."""
    ablation = project.config["ablation"]
    ablation["keep_merges"] = False
    ablation["objectives"] = {"kl": ablation["objectives"]["kl"]}
    project.write()
    return project


def run_of(project, seed):
    return project.results / "ablation" / "kl" / f"seed{seed}"


def test_models_are_dropped_and_tables_stay(reproduced, dropping):
    kept = {f"seed{seed}": run_of(reproduced, seed) for seed in (0, 1)}
    # Stopped between merge and evaluation: what was merged is not merged again.
    dropping.snakemake(
        *("results/tiny/ablation/kl/seed1/scores.json", "--cores", "2"),
        *("--until", "ablation_merge", "--quiet"),
    )
    merged = run_of(dropping, 1) / "merged"
    assert (merged / "model.safetensors").is_file()
    planned = dropping.planned()
    assert (planned["ablation_merge"], planned["ablation_evaluate"]) == (1, 2)
    dropping.reproduce()
    for name, folder in kept.items():
        ours = run_of(dropping, name.removeprefix("seed"))
        assert not list(ours.rglob("model.safetensors")) and not (ours / "merged").exists()
        assert (ours / "model" / "cost.json").is_file()
        for file in ("scores.json", "model/manifest.json"):
            assert (ours / file).read_bytes() == (folder / file).read_bytes()
    table = (dropping.results / "tables" / "table3.csv").read_text()
    row = next(line for line in table.splitlines() if line.startswith("kl,"))
    assert row in (reproduced.results / "tables" / "table3.csv").read_text()

    assert dropping.planned() == {}
    (dropping.results / "tables" / "manifest.json").unlink()
    assert set(dropping.planned()) == {"make_tables", "make_page"}
    # The record tells that a setting changed, though the model is gone.
    dropping.config["ablation"]["objectives"]["kl"]["objective"] = {"kl": 0.5}
    dropping.write()
    planned = dropping.planned()
    assert (planned["ablation_merge"], planned["ablation_evaluate"]) == (2, 2)
    dropping.config["ablation"]["objectives"]["kl"]["objective"] = {"kl": 1.0}
    dropping.write()
    # Scores that are gone need their model again, and only that.
    (run_of(dropping, 0) / "scores.json").unlink()
    planned = dropping.planned()
    assert (planned["ablation_merge"], planned["ablation_evaluate"]) == (1, 1)
