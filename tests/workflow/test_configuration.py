"""The configuration is checked whole, and a mistake is told in one line with its mend."""

from __future__ import annotations

import copy
import re
import shutil
from pathlib import Path

import pytest
import yaml

from common.errors import UserError
from merges.engine import registry
from workflow import configuration, reference

ROOT = Path(__file__).resolve().parents[2]
PAPER = yaml.safe_load((ROOT / "paper.yaml").read_text(encoding="utf-8"))


@pytest.fixture
def config():
    return yaml.safe_load((ROOT / "config.yaml").read_text(encoding="utf-8"))


def refuse(config, pattern):
    with pytest.raises(UserError, match=pattern) as refused:
        configuration.resolve(config)
    assert "\n" not in str(refused.value)


def test_the_default_is_in_order_and_resolving_changes_nothing_twice(config):
    before = copy.deepcopy(config)
    resolved = configuration.resolve(config)
    assert config == before
    assert configuration.resolve(resolved.model_dump()) == resolved
    assert resolved.methods["soup"].embeddings_and_norms == "merged"


def test_the_default_holds_the_paper_s_rows(config):
    resolved = configuration.resolve(config)
    methods = {row.method for row in resolved.methods.values()}
    assert {"linear", "task_arithmetic", "ties", "dare_ties", "slerp", "dam"} <= methods
    assert [column.label for column in resolved.cases["case1"].columns] == [
        *("JComQA", "JNLI", "MARC", "JSQuAD", "JAQKET", "XLSum", "XWino", "MGSM"),
    ]
    objectives = resolved.ablation.objectives.values()
    assert [entry.extra for entry in objectives] == [False] * 9 + [True]
    assert len(resolved.ablation.seeds) == 3
    tuned = [row for row in resolved.methods.values() if row.tune]
    assert len(tuned) >= 4
    assert {len(row.tune) for row in tuned} == {resolved.tuning.evaluations}


def test_no_expert_s_domain_holds_the_held_out_tasks(config):
    for case, held_out in (("case1", "bottle_ja8/mgsm"), ("case2", "bottle_heldout/sql_ko")):
        entry = configuration.resolve(config).cases[case]
        assert held_out in entry.tasks
        for expert in entry.experts.values():
            assert held_out not in expert.domain


@pytest.mark.parametrize(
    ("path", "value", "pattern"),
    [
        (("methods", "evolutionary_dfs", "method"), "ties", "its method is linear"),
        (("methods", "evolutionary_dfs", "evolve", "kinds"), "separate", "the parameter space"),
        (("methods", "evolutionary", "evolve", "repeats"), 2, "belongs to the data-flow space"),
        (("methods", "evolutionary", "method"), "iso_c", "evolutionary: .* no searchable"),
        (("methods", "evolutionary", "evolve", "population"), 97, "population of 97 does not fit"),
        (
            ("methods", "evolutionary", "evolve", "seconds"),
            60,
            "studies.cost.rows: evolutionary is",
        ),
        (("methods", "evolutionary", "evolve", "spac"), "x", "'spac'.*did you mean 'space'"),
        (("methods", "evolutionary", "evolve", "algorithm"), "nsga3", "did you mean 'nsga2'"),
        (("methods", "evolutionary_dfs", "evolve", "algorithm"), "map", "the parameter space"),
        (("ablation", "set", "samples"), 9999, r"ablation\.objectives\.kl: 9999 samples"),
        (("ablation", "objectives", "kl_paper", "set", "kl_direcion"), "x", "'kl_direction'"),
        (("sed",), 1, r"unknown key 'sed' at the top level \(did you mean 'seeds?'\?\)"),
        (("evaluation", "tst_items"), 1, r"'tst_items' at evaluation \(did you mean 'test_items'"),
        (("methods", "ties", "methd"), 1, r"'methd' at methods\.ties \(did you mean 'method'"),
        (("methods", "ties", "method"), "tise", r"unknown method 'tise' \(did you mean 'ties'\?\)"),
        (("methods", "ties", "set", "densty"), 0.2, r"methods\.ties: .*did you mean 'density'"),
        (("methods", "ties", "set", "density"), 0, r"methods\.ties: .*density"),
        (("methods", "ties", "set", "density"), 1.5, r"methods\.ties: .*density"),
        (("methods", "ties", "cases"), ["case3"], r"unknown case 'case3' \(did.*ties: null"),
        (("methods", "slerp_ja_math_a", "experts"), ["jp"], r"unknown expert 'jp' of case1"),
        (("methods", "ties_tuned", "tune"), [{"density": 0.5}], r"1 candidates .* 6"),
        (("methods", "dam_tuned", "evolve"), {"budget": 3}, r"both 'tune' and 'evolve'"),
        (("methods", "ja"), {"label": "x", "method": "linear"}, r"the name of a model"),
        (
            ("cases", "case1", "columns", 0, "tasks"),
            ["bottle_ja8/jcomq"],
            r"mean 'bottle_ja8/jcomqa'",
        ),
        (("seeds",), [-1], r"seeds\.0: -1 should be greater than or equal to 0"),
        (("cases", "case1", "base", "train", "learning_rte"), 1, r"did you mean 'learning_rate'"),
        (
            ("cases", "case1", "world"),
            "caze1",
            r"cases\.case1\.world: 'caze1' should be 'case1' or 'case2' \(did you mean 'case",
        ),
        (("cases", "case2", "table"), "table1", r"both write table1"),
        (("cases", "case1", "experts", "ja", "hub"), "abel_7b", "ja is of the hub and the base is"),
        (("methods", "slerp_ja_math_a", "experts"), ["ja"], r"merges 2 experts, not 1"),
        (("methods", "soup", "set"), {"weights": [1, 2]}, r"2 numbers for 3 experts"),
        (("methods", "dam_paper", "set", "samples"), 3000, r"calibration\.rows makes only 2000"),
        (("seeds",), ["zero"], r"seeds\.0: 'zero' should be a valid integer"),
        (("seeds",), [1, 2, 1], r"seeds: \[1, 2, 1\] has non-unique elements"),
        (("ablation", "row"), "dam_papr", r"unknown row 'dam_papr' \(did you mean 'dam_paper'"),
        (("ablation", "row"), "greedy_soup", r"ablation\.row: greedy_soup is searched for"),
        (("methods", "greedy_soup", "tune"), [{}], r"methods\.greedy_soup\.tune\.0"),
        (("methods", "greedy_soup", "evolve"), {"budget": 3}, r"both 'evolve' and 'greedy'"),
        (("methods", "greedy_soup", "method"), "ties", r"greedy_soup: 'greedy' is a uniform soup"),
        (("methods", "greedy_soup", "set"), {"normalize": False}, r"nothing under 'set'"),
        (
            ("methods", "greedy_soup", "greedy"),
            3,
            r"methods\.greedy_soup\.greedy: 3 should be True",
        ),
        (
            ("methods", "sce", "table"),
            "mor",
            r"methods\.sce\.table: 'mor' should be 'main' or 'more' \(did you mean 'more'",
        ),
        (("methods", "ties", "set", "density"), [0.2, 0.3], r"density has 2 numbers for 3 exp"),
        (("methods", "ties", "set", "density"), {"ja": 0.2}, r"ties in case1: density must name"),
        (("methods", "ties", "set", "density"), [0.2, 0.3, 2], r"parameter density: 2 is out of"),
        (
            ("methods", "ties", "set", "density"),
            "0.2x",
            r"'0\.2x' is no number.*per expert: a list",
        ),
        (("methods", "consensus_ta", "set"), {"mask_lambda": -1}, r"mask_lambda: -1 is out of"),
        (("ablation", "objectives", "kl", "objective"), {"kll": 1.0}, r"objectives\.kl: "),
    ],
)
def test_a_mistake_is_refused_with_its_place(config, path, value, pattern):
    place = config
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    refuse(config, pattern)


def test_a_number_may_be_one_for_all_experts_or_one_for_each(config):
    row = config["methods"]["ties"]
    row["cases"] = ["case1"]
    for density in (0.3, [0.2, 0.3, 0.4], {"math_b": 0.4, "ja": 0.2, "math_a": 0.3}):
        row["set"]["density"] = density
        assert configuration.resolve(config).methods["ties"].set["density"] == density
    config["methods"]["ties_tuned"] = {
        **config["methods"]["ties_tuned"],
        "cases": ["case1"],
        "tune": [{"density": [0.1 * number, 0.2, 0.3]} for number in range(1, 7)],
    }
    configuration.resolve(config)
    config["methods"]["ties_tuned"]["tune"][4]["density"] = [0.1, 0.2]
    refuse(config, r"methods\.ties_tuned in case1: density has 2 numbers for 3 experts")


def test_the_paper_s_tables_hold_its_rows_and_another_table_the_rest(config):
    resolved = configuration.resolve(config).methods
    more = [name for name, row in resolved.items() if row.table == "more"]
    assert set(more) == {
        *("greedy_soup", "model_stock", "dare_linear", "della", "breadcrumbs", "sce"),
        *("consensus_ta", "pcb", "tsv_m", "iso_c", "iso_cts", "karcher"),
    }
    for name in more:  # untuned, with the defaults of the method
        assert resolved[name].set == {} and resolved[name].tune is None
        assert "data" not in registry.info(resolved[name].method).needs
    assert list(resolved)[-len(more) :] == more


def test_a_missing_key_is_named(config):
    del config["cases"]["case1"]["table"]
    refuse(config, r"cases\.case1 lacks the key 'table'")


def test_a_file_that_is_no_configuration(tmp_path):
    path = tmp_path / "config.yaml"
    with pytest.raises(UserError, match="no such configuration"):
        configuration.load(path)
    path.write_text("a: [1")
    with pytest.raises(UserError, match="not valid YAML"):
        configuration.load(path)
    path.write_text("hello")
    with pytest.raises(UserError, match="not a configuration"):
        configuration.load(path)


def write(folder, **files):
    for name, text in files.items():
        (folder / f"{name}.yaml").write_text(text, encoding="utf-8")


def test_an_extending_file_says_only_what_differs(tmp_path):
    write(
        tmp_path,
        own=f"""
            extends: {ROOT / "config.yaml"}
            name: own
            evaluation: {{test_items: 7}}
            methods:
              ties: {{set: {{density: 0.3}}}}
              karcher: null
              mine: {{label: Mine, method: linear}}
            ablation: {{seeds: [5]}}
            studies: null
        """,
        further="{extends: own.yaml, name: further, ablation: null}",
    )
    default = configuration.load(ROOT / "config.yaml")
    own = configuration.load(tmp_path / "own.yaml")
    assert (own.name, own.world_seeds, own.evaluation.test_items) == (
        *("own", default.world_seeds, 7),
    )
    assert own.evaluation.batch_size == default.evaluation.batch_size
    assert own.methods["ties"].set == {"density": 0.3, "scale": 1.0}
    assert list(own.methods) == [*(row for row in default.methods if row != "karcher"), "mine"]
    assert own.ablation.seeds == [5] and own.ablation.row == default.ablation.row
    assert own.studies.present == {} and own.cases == default.cases
    further = configuration.load(tmp_path / "further.yaml")
    assert further == own.model_copy(update={"name": "further", "ablation": None})


@pytest.mark.parametrize(
    ("text", "pattern"),
    [
        ("extends: own.yaml", r"own\.yaml, which .*own\.yaml extends: files extend each other"),
        ("extends: gone.yaml", r"gone\.yaml, which .*own\.yaml extends: no such configuration"),
        ("extends: [a]", r"own\.yaml: extends: \['a'\] is not the path"),
        (
            f"{{extends: {ROOT / 'config.yaml'}, methods: {{ties: {{labl: x}}}}}}",
            r"own\.yaml: unknown key 'labl' at methods\.ties \(did you mean 'label'",
        ),
        (
            f"{{extends: {ROOT / 'config.yaml'}, cases: {{case1: {{columns: "
            "[{label: JNLI, tasks: [bottle_ja8/jnli]}]}}}",
            "unknown task 'bottle_ja8/jcomqa' of .* your list replaces all columns",
        ),
    ],
)
def test_a_mistake_in_an_extending_file_names_it(tmp_path, text, pattern):
    write(tmp_path, own=text)
    with pytest.raises(UserError, match=pattern) as refused:
        configuration.load(tmp_path / "own.yaml")
    assert "\n" not in str(refused.value)


def test_snakemake_s_configuration_is_extended_and_named_as_on_the_command_line(
    tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    write(tmp_path, own=f"{{extends: {ROOT / 'config.yaml'}, name: own, studies: null}}")
    path, text = tmp_path / "own.yaml", yaml.safe_load((tmp_path / "own.yaml").read_text())
    # As with --config seed=3, which Snakemake has already put over the files.
    found = configuration.from_snakemake(text | {"seed": 3}, [path])
    assert found == configuration.load(path).model_copy(update={"seed": 3, "seeds": None})
    for given, named in (("own.yaml", r"own\.yaml"), (f"--configfile={path}", str(path))):
        monkeypatch.setattr("sys.argv", ["snakemake", given])
        with pytest.raises(UserError, match=f"^{named}: unknown key 'sed'"):
            configuration.from_snakemake(text | {"sed": 3}, [path])


def test_seeds_make_worlds_and_one_seed_is_one_world(tmp_path):
    write(tmp_path, own=f"{{extends: {ROOT / 'config.yaml'}, seeds: [4, 7], studies: null}}")
    write(tmp_path, one=f"{{extends: {tmp_path}/own.yaml, seed: 4}}")
    several, one = (configuration.load(tmp_path / f"{name}.yaml") for name in ("own", "one"))
    assert {name: (world.of, world.seed) for name, world in several.worlds.items()} == {
        "case1": ("case1", 4),
        "case1-seed7": ("case1", 7),
        "case2": ("case2", 4),
        "case2-seed7": ("case2", 7),
    }
    assert list(one.worlds) == ["case1", "case2"] and one.world_seeds == [4]
    assert "in each of 2 worlds" in several.summary and "worlds" not in one.summary
    text = configuration.read(tmp_path / "one.yaml")
    for given, told in (
        ({"seeds": [1]}, "seed and seeds: give one of"),
        ({"seed": None}, r"lacks the key 'seeds': give one of seeds: \[1, 2, 3\] and seed: 1"),
    ):
        with pytest.raises(UserError, match=told):
            configuration.resolve(text | given)
    published = configuration.read(ROOT / "paper.yaml") | {"seed": None, "seeds": [1, 2]}
    with pytest.raises(UserError, match="published checkpoints, which no seed makes anew"):
        configuration.resolve(published)


def test_the_study_of_dam_shares_the_experiment_s_worlds(config):
    assert config["studies"]["dam"]["seeds"] == [1, 2, 3]
    found = configuration.resolve(configuration.merge(config, {"seeds": [1, 3]})).worlds
    assert [name for name in found if name.startswith("studies/dam")] == ["studies/dam/case1_seed2"]
    assert found["case1-seed3"].seed == 3


def test_the_schema_and_the_reference_page_are_up_to_date():
    for path, text in reference.contents().items():
        assert (ROOT / path).read_text(encoding="utf-8") == text, "run make docs"
    for name in ("config.yaml", "paper.yaml"):
        first = (ROOT / name).read_text(encoding="utf-8").splitlines()[0]
        assert first == f"# yaml-language-server: $schema={reference.SCHEMA}"


def test_the_schema_accepts_what_is_valid_and_refuses_what_is_not(config):
    import jsonschema

    schema = jsonschema.Draft202012Validator(reference.json_schema())
    schema.validate(config)
    schema.validate(PAPER)
    schema.validate({"extends": "config.yaml", "methods": {"ties": None}, "studies": None})
    config["methods"]["ties"]["labl"] = "x"
    config["evaluation"]["test_items"] = 0
    assert len(list(schema.iter_errors(config))) == 2


def test_the_reference_page_has_every_key_and_its_example_is_in_order(tmp_path):
    page = (ROOT / "docs" / "configuration.md").read_text(encoding="utf-8")
    example = re.search(r"```yaml\n(.*?)```", page, re.S)[1]
    assert example.count("\n") <= 11
    shutil.copy(ROOT / "config.yaml", tmp_path)
    write(tmp_path, own=example)
    assert configuration.load(tmp_path / "own.yaml").methods["ties"].set["density"] == 0.3
    for key in ("embedding_from", "keep_merges", "max_length", "expert_embeddings", "ancestor"):
        assert f"| `{key}` | " in page
