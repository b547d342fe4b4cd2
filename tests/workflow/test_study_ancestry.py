"""The study of ancestry: its settings are checked; its jobs share all but one expert."""

import copy
import re
from pathlib import Path

import pytest
import yaml

from common.errors import UserError
from common.files import read_json, sha256_file
from studies.rooms import Studies
from workflow import configuration

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def default():
    return yaml.safe_load((ROOT / "config.yaml").read_text(encoding="utf-8"))


def test_the_ancestor_is_taken_within_the_base_s_training(default):
    resolved = configuration.resolve(default)
    study, case = resolved.studies.ancestry, resolved.cases["case2"]
    assert study.steps(case) == 600  # 60 % of 1,000
    (world,) = Studies(ancestry=study).worlds(resolved).values()
    assert (world.of, world.seed) == ("case2", 1) and world.model_dump() == (
        case.model_dump() | {"of": "case2", "seed": 1}  # the first world's
    )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"case": "case3"}, "studies.ancestry.case: unknown case 'case3'"),
        (
            {"expert": "kor"},
            "studies.ancestry.expert: unknown expert 'kor' of case2 (did you mean 'ko'?)",
        ),
        ({"column": "KoBEST"}, "studies.ancestry.column: unknown column 'KoBEST' of case2"),
        (
            {"others": ["slerp_ja_math_a"]},
            "studies.ancestry.others: unknown row 'slerp_ja_math_a' of case2",
        ),
        ({"others": ["dare_ties"]}, "'dare_ties' is among leaders and others"),
        ({"ancestor": 1.0}, "studies.ancestry.ancestor"),
        ({"ancester": 0.5}, "unknown key 'ancester'"),
    ],
)
def test_a_mistake_is_told_with_its_place(default, changes, message):
    config = copy.deepcopy(default)
    config["studies"]["ancestry"] |= changes
    with pytest.raises(UserError, match=re.escape(message)):
        configuration.resolve(config)


@pytest.mark.workflow
def test_it_trains_one_expert_from_an_ancestor_and_shares_the_rest(project):
    before = project.files("case2/models/*/*")
    planned = project.planned("study_ancestry")
    assert planned["study_ancestry_ancestor"] == planned["study_ancestry_expert"] == 1
    assert planned["study_ancestry_shared"] == 4  # data, base and two experts
    assert "bottle_base" not in planned and "bottle_expert" not in planned
    code, output = project.run(
        "workflow", "study", "ancestry", "--config", "tiny.yaml", "--cores", "2"
    )
    assert code == 0, output[-4000:]
    world = project.results / "studies/ancestry"
    for model in ("base", "de", "sql"):
        name = f"models/{model}/model.safetensors"
        assert sha256_file(world / name) == sha256_file(project.results / "case2" / name)
    ancestor = read_json(world / "ancestor" / "manifest.json")
    assert ancestor["parameters"]["stop_after"] == 1  # 60 % of two steps
    ko = read_json(world / "models" / "ko" / "manifest.json")
    assert ko["inputs"]["base"] == sha256_file(world / "ancestor" / "manifest.json")
    assert (world / "claim_c11.md").read_text().count("| DARE-TIES |") == 1
    assert project.files("case2/models/*/*") == before
