"""The study of scale: its settings are checked, and its parts are planned apart."""

import copy
import re
from pathlib import Path

import pytest
import yaml

from common.errors import UserError
from studies.scale.settings import SKILLS, code_of
from studies.scale.skills import SKILLS as NAMED
from workflow import configuration

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def default():
    return yaml.safe_load((ROOT / "config.yaml").read_text(encoding="utf-8"))


def test_the_sizes_are_the_bottle_s_and_sixteen_times_apart(default):
    study = configuration.resolve(default).studies.scale
    assert len(study.sizes) == 4 and study.counts == [2, 4, 6, 8] and len(NAMED) == SKILLS
    own = default["cases"]["case1"]["model"]
    assert any(size.hidden_size == own["hidden_size"] for size in study.sizes.values())

    def parameters(size, vocabulary=1677):
        width, inner = size.hidden_size, size.intermediate_size
        attention = 2 * width * width * (1 + size.kv_heads / size.heads)
        return 2 * vocabulary * width + study.layers * (attention + 3 * width * inner + 2 * width)

    every = [parameters(size) for size in study.sizes.values()]
    assert every == sorted(every) and every[-1] > 16 * every[0]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"unseen": {"size": "w12", "count": 6}}, "studies.scale.unseen.size: unknown size 'w12'"),
        ({"unseen": {"size": "w32", "count": 5}}, "studies.scale.unseen.count: unknown number '5'"),
        ({"qualities": {"weak": 0.5}}, "studies.scale.qualities: none is 1"),
        ({"counts": [2, 9]}, "studies.scale.counts"),
        (
            {"methods": {"x": {"label": "X", "method": "tise"}}},
            "studies.scale.methods.x: unknown method 'tise' (did you mean 'ties'?)",
        ),
        (
            {"methods": {"x": {"label": "X", "method": "ties", "tune": [{"density": 2.0}]}}},
            "studies.scale.methods.x",
        ),
        (
            {"methods": {"x": {"label": "X", "method": "dam", "tune": [{"samples": 8}]}}},
            "studies.scale.methods.x: DAM is trained once",
        ),
        ({"calibration_rows": 100}, "240 samples per expert, but studies.scale.calibration_rows"),
        (
            {"methods": {"x": {"label": "X", "method": "adamerging"}}},
            "studies.scale.methods.x: of methods that need data, the study knows DAM alone",
        ),
        ({"sices": {}}, "unknown key 'sices' at studies.scale (did you mean 'sizes'?)"),
    ],
)
def test_a_mistake_is_told_with_its_place(default, changes, message):
    config = copy.deepcopy(default)
    config["studies"]["scale"] |= changes
    with pytest.raises(UserError, match=re.escape(message)):
        configuration.resolve(config)


def test_the_code_of_a_part_has_that_of_its_methods(default):
    entries = code_of(configuration.resolve(default).studies.scale)
    assert {"studies/scale/part.py", "merges/methods/ties.py", "merges/methods/dare.py"} <= set(
        entries
    )


@pytest.mark.workflow
def test_each_size_and_seed_is_a_part_and_the_short_name_runs_the_study(project):
    planned = project.planned("study_scale")
    sizes = project.config["studies"]["scale"]["sizes"]
    assert {rule: planned[rule] for rule in planned if rule.startswith("study_scale_w")} == {
        f"study_scale_{size}": 3 for size in sizes
    }
    assert planned["study_scale"] == 1 and "bottle_base" not in planned
    code, output = project.run("workflow", "scale_study", "--config", "tiny.yaml", "-n")
    assert code == 0 and "study_scale_w256" in output, output[-2000:]
