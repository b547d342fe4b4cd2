"""Cases of published checkpoints: refusals, the jobs that the paper's tables need, the budget."""

import copy
import fnmatch
import importlib.util
import shlex
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml

from common.errors import UserError
from common.files import write_json
from paper import budget, checks, estimate
from paper.hub.table import read_table
from search.cli import build_parser
from tests.workflow.conftest import Project
from workflow import configuration
from workflow.config import hub
from workflow.config.cases import Column

ROOT = Path(__file__).resolve().parents[2]
PAPER = yaml.safe_load((ROOT / "paper.yaml").read_text(encoding="utf-8"))


def changed(change):
    config = copy.deepcopy(PAPER)
    change(config)
    return config


def test_the_papers_configuration_is_in_order():
    config = configuration.resolve(PAPER, "paper.yaml")
    assert all(case.fetched for case in config.cases.values())
    ids = [reference.id for reference in budget.references_of(config)]
    assert len(ids) == len(set(ids)) == 15


def test_the_japanese_data_are_the_release_that_the_authors_name():
    # p1atdev/ichikara-instruction:20231115-1; the repository has others beside it.
    patterns = read_table(ROOT / "paper/hub.tsv")["ichikara"].patterns

    def taken(path):
        return any(fnmatch.fnmatch(path, pattern) for pattern in patterns)

    assert taken("20231115-1/train-00000-of-00001.parquet") and taken("data/20231115-1.jsonl")
    assert not taken("20231221-003/train-00000-of-00001.parquet")
    assert not taken("dataset_infos.json")
    # It seems to be one of five parts that have 2,903 rows together (arXiv:2407.03963, table 7).
    assert PAPER["calibration"]["rows"] == 1729


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (
            lambda c: c["cases"]["case1"]["base"].update(hub="mistral_7c"),
            "unknown reference 'mistral_7c' of paper/hub.tsv (did you mean 'mistral_7b'?)",
        ),
        (
            lambda c: c["cases"]["case1"]["base"].update(hub="ichikara"),
            "ichikara is a dataset in",
        ),
        (
            lambda c: c["cases"]["case1"]["experts"]["abel"].pop("hub"),
            "abel lacks the key 'hub'",
        ),
        (
            lambda c: c["cases"]["case1"]["experts"]["abel"].pop("calibration"),
            "case1.experts.abel has no calibration data to learn",
        ),
        (
            lambda c: c["cases"]["case1"]["base"].update(train={"steps": 1, "learning_rate": 0.1}),
            "base cannot be trained",
        ),
        (lambda c: c["cases"]["case1"].update(world="case1"), "'world' is of a bottle's case"),
        (lambda c: c["cases"]["case1"].pop("size"), "lacks the key 'size'"),
        (
            lambda c: c["methods"].update(
                evolved={"label": "E", "method": "task_arithmetic", "evolve": {"budget": 9}}
            ),
            "none are published for ja8/xwinograd_ja, ja8/mgsm of case1; leave the case out",
        ),
        (
            lambda c: c["methods"]["evollm"].update(method="linear"),
            "methods.evollm needs either a method or",
        ),
        (
            lambda c: c["cases"]["case1"].update(vocabulary="crop"),
            "'crop' should be 'refuse', 'base'",
        ),
        (lambda c: c.update(hub={"stand_ins": "x.yaml"}), "below hub.benchmarks, which is not"),
        (lambda c: c["methods"]["soup"].update(backend="vlm"), "'vlm' should be 'hf' or 'vllm'"),
        (
            lambda c: c["evaluation"].update(interpreters={"vllm": "nowhere/python"}),
            "nowhere/python is not there; install that environment",
        ),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(change, told):
    with pytest.raises(UserError) as caught:
        configuration.resolve(changed(change), "paper.yaml")
    assert told in str(caught.value)
    assert "\n" not in str(caught.value)


def test_only_a_case_s_own_tasks_are_evaluated():
    case = configuration.resolve(PAPER, "paper.yaml").cases["case2"]
    assert case.suites == ["okapi_de", "kobest", "sql_eval/classic"]
    some = Column(label="Some", tasks=["okapi_de:corrected/arc", "okapi_de:corrected/mmlu"])
    assert case.model_copy(update={"columns": [some]}).suites == some.tasks


def tuned(config):
    """Add a tuned row whose search is guided by the tasks of case 1 that have dev items."""
    config["methods"]["dare_ties_tuned"] = {
        "label": "DARE-TIES (tuned)",
        "method": "dare_ties",
        "tune": [{"density": density} for density in (0.2, 0.5)],
        "cases": ["case1"],
    }
    config["tuning"] = {"evaluations": 2}
    config["cases"]["case1"]["dev_tasks"] = ["ja8/jnli", "ja8/jcommonsenseqa"]


def test_a_search_is_guided_by_the_tasks_that_have_dev_items():
    config = configuration.resolve(changed(tuned), "paper.yaml")
    case = config.cases["case1"]
    # In the order of the columns, each a group of the average.
    assert case.searched_columns == [["ja8/jcommonsenseqa"], ["ja8/jnli"]]
    assert config.dev_options("case1") == {
        "dev": "ja8/jnli,ja8/jcommonsenseqa",
        "dev_items": 60,
    }
    assert config.dev_options("case2") == {}

    def misspelt(config):
        tuned(config)
        config["cases"]["case1"]["dev_tasks"].append("ja8/jnly")

    with pytest.raises(
        UserError, match=r"dev_tasks: unknown task 'ja8/jnly' .*did you mean 'ja8/jnli'"
    ):
        configuration.resolve(changed(misspelt), "paper.yaml")


@pytest.mark.parametrize(
    ("task", "has"),
    [
        ("ja8/jsquad", True),
        ("ja8:corrected:0.6/jsquad", True),
        ("ja8/mgsm", False),
        ("okapi_de/arc", True),
        ("okapi_de:mlmm/arc", False),  # its 25 examples show rows that the suite's own does not
        ("okapi_de/hellaswag", False),
        ("sql_eval/classic", False),
        ("bottle_ja8/jnli", False),
    ],
)
def test_which_tasks_have_dev_items(task, has):
    assert hub.has_dev(task) is has


@pytest.mark.workflow
def test_a_row_has_its_own_backend_and_that_its_own_python(tmp_path):
    python = tmp_path / "bin" / "python"
    python.parent.mkdir()
    python.symlink_to(sys.executable)

    def two(config):
        config["evaluation"] |= {"backend": "hf", "device": "cpu"}
        config["evaluation"]["interpreters"] = {"vllm": str(python)}
        config["cases"]["case1"]["base"]["backend"] = "vllm"
        config["methods"]["dam_paper"]["backend"] = "vllm"

    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(changed(two)))
    listed = subprocess.run(
        [
            *(sys.executable, "-m", "snakemake", "--snakefile", str(ROOT / "Snakefile")),
            *("--configfile", str(path), "-n", "--printshellcmds", "--cores", "1"),
        ],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    ).stdout
    found = {}
    for line in listed.splitlines():
        if " -m evaluation --model " in line:
            model = line.partition("--out results/paper/")[2].split()[0]
            command = line.partition("; ")[2].partition(" -m evaluation")[0]
            found[model] = (command, line.partition("--backend ")[2].split()[0])
    other = (f"env -u BOTTLE_WARM_WORKER {python}", "vllm")
    assert {model for model, how in found.items() if how == other} == {
        "case1/scores/test/base.json",
        "case1/scores/test/dam_paper.json",
        "case2/scores/test/dam_paper.json",
    }
    # The ablation's runs of the same row are the experiment's.
    assert found["ablation/kl/seed0/scores.json"] == ("python", "hf")
    assert set(found.values()) == {other, ("python", "hf")}


def test_the_budget_agrees_with_what_was_counted_by_hand():
    # 1,729 rows of three samples, about 874 tokens, Mistral's 7.24 G parameters: 22 PFLOP for the
    # teachers; a training step of 94 ms of products and 47 ms of weight traffic.
    def only_dam(config):
        config["methods"] = {"dam_paper": config["methods"]["dam_paper"]}

    config = configuration.resolve(changed(only_dam), "paper.yaml")
    teachers = budget.teacher_hours(config, "case1")
    assert budget.states_gigabytes(config, "case1") == pytest.approx(12.7, rel=0.05)
    assert teachers * 3600 * 396e12 == pytest.approx(22e15, rel=0.02)
    training = budget.training_hours(config, "case1", budget.learning_runs(config, "case1"))
    assert training * 3600 / 1729 == pytest.approx(0.094 + 0.047, rel=0.05)
    # A merge reads four models of 14.48 GB and writes one, at 1 GB/s; 2 ns for each of four values.
    assert budget.merge_hours(config, "case1") * 3600 == pytest.approx(5 * 14.48 + 8 * 7.24, 0.01)


def test_an_objective_s_own_settings_are_in_its_price():
    def longer(config):
        config["ablation"]["objectives"]["kl"]["set"] = {"epochs": 11}

    def hours(config):
        config = configuration.resolve(config, "paper.yaml")
        return budget.training_hours(config, "case1", budget.ablation_runs(config))

    # Three of thirty runs of one epoch get ten more: twice the work.
    assert hours(changed(longer)) == pytest.approx(2 * hours(PAPER))


def step_of(steps, part, words):
    (found,) = [step for step in steps if step.part == part and words in step.name]
    return found


def test_the_steps_of_the_paper_add_up(tmp_path):
    config = configuration.resolve(PAPER, "paper.yaml")
    steps = estimate.steps_of(config, tmp_path)
    # Base, three experts and EvoLLM-JP; two of them are pickles, written again as safetensors.
    models = step_of(steps, "case1", "download of 5 models")
    assert models.gigabytes == pytest.approx(5 * 14.48, rel=0.01)
    assert step_of(steps, "case1", "pickles").gigabytes == pytest.approx(2 * 14.48, rel=0.01)
    assert step_of(steps, "case1", "evaluation").name == "evaluation of 15 models"
    runs = step_of(steps, "ablation", "learn")
    assert runs.gigabytes == pytest.approx(2 * 14.48, rel=0.01)
    keeping = changed(lambda config: config["ablation"].update(keep_merges=True))
    kept = step_of(estimate.steps_of(configuration.resolve(keeping), tmp_path), "ablation", "learn")
    assert kept.gigabytes == pytest.approx(30 * 14.48, rel=0.01) and kept.hours == runs.hours
    *_, last = estimate.table_of(steps)
    size, hours, gpu, price = map(float, last.split()[1:])
    assert size == pytest.approx(sum(step.gigabytes for step in steps), abs=1)
    assert price == pytest.approx(3.0 * hours, abs=0.03) and gpu < hours


def test_what_was_measured_takes_the_estimate_s_place(tmp_path):
    config = configuration.resolve(PAPER, "paper.yaml")
    cost = {"wall_s": 7200.0, "gpu_s": 3600.0}
    write_json(tmp_path / "case2" / "teachers" / "cost.json", cost)
    write_json(tmp_path / "ablation" / "kl" / "seed1" / "scores.cost.json", cost)
    steps = estimate.steps_of(config, tmp_path)
    teachers = step_of(steps, "case2", "teachers")
    assert (teachers.hours, teachers.gpu_hours, teachers.known) == (2.0, 1.0, "measured")
    scores = step_of(steps, "ablation", "evaluation")
    assert scores.known == "measured in 1 of 30" and scores.hours == pytest.approx(60)
    assert step_of(steps, "case1", "teachers").known == "estimated"


def test_the_report_names_licences_disk_and_missing_tokens(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    for name in ("HF_TOKEN", "HF_TOKEN_PATH"):
        monkeypatch.delenv(name, raising=False)
    config = configuration.resolve(PAPER, "paper.yaml")
    lines, errors = estimate.report(config, tmp_path)
    assert any("Meta-Llama-3-8B-Instruct" in line and "NO TOKEN" in line for line in lines)
    assert any("is gated and there is no token" in error for error in errors)
    monkeypatch.setenv("HF_TOKEN", "a token")
    _, errors = estimate.report(config, tmp_path)
    assert not any("gated" in error for error in errors)


def test_a_search_is_priced_by_its_candidates(tmp_path):
    config = configuration.resolve(changed(tuned), "paper.yaml")
    search = step_of(estimate.steps_of(config, tmp_path), "case1", "searched")
    # Two candidates: each a merge, and 60 items of 400 and 450 tokens at 396 TFLOP/s.
    dev = 2 * 7.24e9 * 60 * (400 + 450) / 396e12
    merge = 5 * 14.48 + 8 * 7.24
    assert search.hours * 3600 == pytest.approx(2 * (merge + dev), rel=0.01)
    assert step_of(estimate.steps_of(config, tmp_path), "case1", "on the CPU").name == (
        "6 merges on the CPU"
    )


def test_what_a_run_lacks_is_told_before_its_first_step(tmp_path, monkeypatch):
    config = configuration.resolve(PAPER, "paper.yaml")
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    for name in ("HF_TOKEN", "HF_TOKEN_PATH"):
        monkeypatch.delenv(name, raising=False)
    checks.check_tokens(config, ["mistral_7b"])
    with pytest.raises(UserError, match=r"llama3_8b_instruct .* is gated and there is no token"):
        checks.check_tokens(config, ["mistral_7b", "llama3_8b_instruct"])
    mirrored = configuration.resolve(changed(lambda c: c["hub"].update(mirror="there")))
    checks.check_tokens(mirrored, ["llama3_8b_instruct"])
    (tmp_path / "model").write_bytes(bytes(2_000_000))
    assert checks.gigabytes_in(tmp_path) == pytest.approx(0.002)
    monkeypatch.setattr(checks.shutil, "disk_usage", lambda _: SimpleNamespace(free=100e9))
    checks.check_disk(99.0, tmp_path / "not" / "there")
    with pytest.raises(UserError, match="needs about 101 GB more and 100 GB are free"):
        checks.check_disk(101.0, tmp_path)


@pytest.mark.workflow
def test_a_run_without_a_token_does_not_begin(tmp_path, monkeypatch):
    for name in ("HF_TOKEN", "HF_TOKEN_PATH"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    project = Project(tmp_path / "project", PAPER)
    code, output = project.run("snakemake", "--profile", "workflow/profiles/paper", "table2")
    assert code != 0 and "Traceback" not in output
    (told,) = [line for line in output.splitlines() if line.startswith("error: ")]
    assert "llama3_8b_instruct" in told and "HF_TOKEN" in told
    assert not (project.results / "case2").exists()


@pytest.mark.workflow
@pytest.mark.skipif(importlib.util.find_spec("vllm") is not None, reason="vLLM is there")
def test_a_run_without_vllm_does_not_begin(tmp_path, monkeypatch):
    def small(config):
        config["evaluation"]["device"] = "cpu"
        config["calibration"]["rows"] = 2
        config["methods"] = {"soup": config["methods"]["soup"]}
        del config["ablation"]
        for case in config["cases"].values():
            case["size"]["parameters"] = 1e5

    monkeypatch.setenv("HF_TOKEN", "a token")
    project = Project(tmp_path / "project", changed(small))
    code, output = project.run("snakemake", "table2", "--configfile", "tiny.yaml")
    assert code != 0 and "Traceback" not in output
    (told,) = [line for line in output.splitlines() if line.startswith("error: ")]
    assert "evaluated by vLLM" in told and "requirements-gpu.lock" in told
    assert not (project.results / "case2").exists()


@pytest.mark.parametrize("key", ["mirror", "benchmarks"])
def test_local_copies_that_are_not_there_are_told_before_anything_runs(tmp_path, key):
    def elsewhere(config):
        config["hub"][key] = str(tmp_path / "gone")

    config = configuration.resolve(changed(elsewhere), "paper.yaml")
    _, errors = estimate.report(config, tmp_path)
    assert f"hub.{key}: {tmp_path / 'gone'} is no folder" in "\n".join(errors)
    with pytest.raises(UserError, match=f"hub.{key}: .* is no folder"):
        checks.check_places(config)


def test_too_small_a_gpu_or_disk_is_told_before_anything_is_fetched(tmp_path, monkeypatch):
    config = configuration.resolve(PAPER, "paper.yaml")
    monkeypatch.setenv("HF_TOKEN", "a token")
    monkeypatch.setattr(estimate.capacity, "gpus", lambda: [25757])
    _, errors = estimate.report(config, tmp_path)
    told = [error for error in errors if "training holds" in error]
    assert len(told) == 2 and "54 GB on a GPU, and the GPU here has 25.8 GB" in told[0]
    monkeypatch.setattr(checks.shutil, "disk_usage", lambda _: SimpleNamespace(free=100e9))
    _, errors = estimate.report(config, tmp_path)
    (told,) = [error for error in errors if "are free" in error]
    assert "needs about" in told and "100 GB are free" in told and "\n" not in told


@pytest.mark.workflow
def test_the_papers_profile_lists_all_jobs_without_torch():
    code = (
        "import sys, runpy\n"
        "profile = 'workflow/profiles/paper'\n"
        "sys.argv = ['snakemake', '--profile', profile, '-n', '--quiet', 'rules']\n"
        "try: runpy.run_module('snakemake', run_name='__main__')\n"
        "except SystemExit as end: assert not end.code, end.code\n"
        "assert 'torch' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    counts = dict(line.split() for line in done.stdout.splitlines() if len(line.split()) == 2)
    assert counts["fetch_model"] == "6" and counts["convert_pickles"] == "2"
    assert counts["ablation_merge"] == "30"


@pytest.mark.workflow
def test_a_search_on_published_models_runs_on_the_device(tmp_path):
    (tmp_path / "tuned.yaml").write_text(yaml.safe_dump(changed(tuned)), encoding="utf-8")
    target = "results/paper/case1/merges/dare_ties_tuned/manifest.json"
    done = subprocess.run(
        [
            *(sys.executable, "-m", "snakemake", target, "-n", "-p"),
            *("--configfile", str(tmp_path / "tuned.yaml")),
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    commands = {
        words: line
        for line in done.stdout.splitlines()
        for words in ("search tune", "evaluation data")
        if f"-m {words}" in line
    }
    search = commands["search tune"]
    for option in ("--vocabulary crop-to-base", "--device cuda", "--dtype bfloat16"):
        assert f" {option} " in search
    assert " --engine postgres " in search and "--suites ja8/jcommonsenseqa,ja8/jnli " in search
    assert "--dev ja8/jnli,ja8/jcommonsenseqa --dev-items 60" in commands["evaluation data"]
    # What the two commands are given, they take.
    arguments = shlex.split(search.partition(" -m search ")[2].partition(" 2>&1")[0])
    assert build_parser().parse_args(arguments).device == "cuda"
