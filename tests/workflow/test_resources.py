"""What steps ask for, by hand for models of known size, and what is told where it is not there."""

import os
import re
import time
from pathlib import Path

import pytest
import yaml

from common import client
from common.errors import UserError
from workflow import capacity, cli, configuration, resources
from workflow.capacity import Ask
from workflow.config.cases import Case, Parent, Size

ROOT = Path(__file__).resolve().parents[2]
SEVEN = Case.model_construct(
    base=Parent(label="7B", hub="x"), size=Size(parameters=7.24e9, dtype="bfloat16")
)


@pytest.fixture(scope="module")
def bottle():
    return configuration.load(ROOT / "config.yaml").cases["case1"]


@pytest.fixture
def programs(tmp_path, monkeypatch):
    """Puts shell scripts of given names before everything else that could be called."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)

    def write(**scripts):
        for name, script in scripts.items():
            path = folder / name.replace("_", "-")
            path.write_text(f"#!/bin/sh\n{script}\n")
            path.chmod(0o755)

    return write


def test_the_bottle_s_parameters_are_those_of_its_shape(bottle):
    from transformers import MistralConfig, MistralForCausalLM

    shape = bottle.model
    model = MistralForCausalLM(
        MistralConfig(
            vocab_size=10,
            hidden_size=shape.hidden_size,
            num_hidden_layers=shape.layers,
            num_attention_heads=shape.heads,
            num_key_value_heads=shape.kv_heads,
            intermediate_size=shape.intermediate_size,
        )
    )
    counted = sum(
        parameter.numel()
        for name, parameter in model.named_parameters()
        if parameter.dim() == 2 and "embed" not in name and "head" not in name
    )
    assert bottle.parameters == counted


@pytest.mark.parametrize("kind", sorted(resources.WORK))
def test_the_bottle_asks_for_no_gpu_and_little_of_anything(bottle, kind):
    asked = resources.ask(kind, bottle, experts=3, times=96)
    assert asked["gpu"] == asked["gpu_mem_mb"] == 0
    assert asked["mem_mb"] < 2100 and asked["runtime"] < 45


def test_a_model_of_7_billion_asks_for_what_was_counted_by_hand(bottle):
    # 7.24e9 parameters of 2 bytes: 14.48 GB. DAM holds three experts and 0.75 of one beside them.
    asked = resources.ask("trained_merge", SEVEN, experts=3)
    assert asked == {
        "gpu": 1,
        "gpu_mem_mb": 54300,
        "mem_mb": 2000 + 57920,
        "runtime": 30 + 116,
    }
    assert asked["gpu_mem_mb"] < 80_000  # one GPU of 80 GB holds it
    assert resources.ask("merge", SEVEN, experts=3)["gpu"] == 0
    six, one = (resources.ask("search", SEVEN, experts=3, times=n)["runtime"] for n in (6, 1))
    assert six - one == pytest.approx(5 * 2 * 14.48, abs=1)


def test_a_retry_asks_for_more_memory_and_time_and_for_no_more_gpus():
    first, second, third = (resources.ask("evaluate", SEVEN, attempt=n) for n in (1, 2, 3))
    assert second["mem_mb"] == pytest.approx(1.5 * first["mem_mb"], abs=1)
    assert third["mem_mb"] == pytest.approx(2.0 * first["mem_mb"], abs=1)
    assert (second["runtime"], third["runtime"]) == (2 * first["runtime"], 3 * first["runtime"])
    assert first["gpu"] == second["gpu"] == third["gpu"] == 1
    assert first["gpu_mem_mb"] == third["gpu_mem_mb"]


def test_a_gpu_that_is_named_is_asked_for_by_small_models_too(bottle):
    assert resources.ask("evaluate", bottle, device="cuda")["gpu"] == 1
    assert resources.ask("merge", bottle, device="cuda")["gpu"] == 0


def test_engines_that_work_together_ask_for_a_gpu_each(bottle):
    one = resources.ask("evaluate", SEVEN)
    asked = resources.ask("evaluate", SEVEN, tensor_parallel=2, data_parallel=3)
    assert asked["gpu"] == 6 and asked["gpu_mem_mb"] == one["gpu_mem_mb"] / 2
    assert asked["mem_mb"] == pytest.approx(2000 + 3 * 1.5 * 14480, abs=1)  # three copies are read
    assert resources.ask("evaluate", bottle, data_parallel=3)["gpu"] == 0


def test_every_step_that_does_work_asks_for_memory_and_time():
    rules = {}
    for path in sorted((ROOT / "workflow" / "rules").glob("*.smk")):
        for block in re.split(r"^(?=rule |use rule )", path.read_text("utf-8"), flags=re.M):
            if head := re.match(r"rule (\w+):", block):
                rules[head[1]] = block
    assert len(rules) > 12
    for name, block in rules.items():
        local = "localrule: True" in block
        assert local != ("    resources:\n" in block), name
        assert "retries:" not in block, f"{name}: retries belong into the profile"


def test_memory_of_every_visible_gpu(programs, monkeypatch):
    assert capacity.gpus() == []
    # nvidia-smi tells MiB: an H100 has 85.5 GB of 10^9 bytes.
    programs(nvidia_smi="echo 81559; echo 24564")
    assert capacity.gpus() == [85520, 25757]
    for visible, expected in (("1", [25757]), ("", []), ("-1", []), ("GPU-8c6f", [25757])):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
        assert capacity.gpus() == expected
    programs(nvidia_smi="exit 9")
    assert capacity.gpus() == []


@pytest.mark.parametrize(
    ("memory", "asks", "limit", "torch", "pattern"),
    [
        (None, [Ask("evaluate", gpu=1)], 1, "2.13.0", r"1 steps .*evaluate.*nvidia-smi shows none"),
        (81559, [Ask("evaluate", gpu=1)], None, "2.13.0", r"add --resources gpu=1"),
        (81559, [Ask("evaluate", gpu=1)], 2, "2.13.0", r"gpu=2: without a scheduler"),
        (81559, [Ask("evaluate", gpu=2)], 1, "2.13.0", r"asks for 2 GPUs.*gives 1"),
        (81559, [Ask("evaluate", gpu=2)], 2, "2.13.0", r"asks for 2 GPUs, and 1 are visible"),
        (
            81559,
            [Ask("evaluate", gpu=2), Ask("merge", gpu=1)],
            2,
            "2.13.0",
            r"--set-resources merge:gpu=2\)",
        ),
        (
            24564,
            [Ask("merge", gpu=1, gpu_mem_mb=54300)],
            1,
            "2.13.0",
            r"needs .*54 GB.*26 GB",
        ),
        (81559, [Ask("evaluate", gpu=1)], 1, "2.13.0+cpu", r"PyTorch's CPU build; install"),
    ],
)
def test_a_gpu_that_is_not_there_is_told_in_one_line(programs, memory, asks, limit, torch, pattern):
    if memory:
        programs(nvidia_smi=f"echo {memory}")
    with pytest.raises(UserError, match=pattern) as refused:
        capacity.check_local(asks, limit, torch)
    assert "\n" not in str(refused.value)


def test_what_can_run_is_let_run(programs):
    capacity.check_local([Ask("evaluate", mem_mb=2000)], None)  # no GPU asked for, none needed
    programs(nvidia_smi="echo 81559")
    capacity.check_local([Ask("merge", gpu=1, gpu_mem_mb=54300)], 1, "2.13.0")
    programs(nvidia_smi="echo 52000")  # 54.5 GB
    capacity.check_local([Ask("merge", gpu=1, gpu_mem_mb=54300)], 1, "2.13.0")
    programs(nvidia_smi="echo 81559; echo 81559")
    both = [Ask("evaluate", gpu=2, gpu_mem_mb=15000), Ask("merge", gpu=2, gpu_mem_mb=54300)]
    capacity.check_local(both, 2, "2.13.0")


def test_what_evaluations_lack_is_told_in_one_line(monkeypatch):
    monkeypatch.setattr(capacity.importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(capacity.server, "programs", lambda: None)
    capacity.check_evaluators(vllm=False, postgres=False)
    for lacking, told in (
        ({"vllm": True, "postgres": True}, "evaluated by vLLM, .*install requirements-gpu.lock"),
        ({"vllm": False, "postgres": True}, "SQL-Eval runs on PostgreSQL, .*engine: sqlite"),
    ):
        with pytest.raises(UserError, match=told) as refused:
            capacity.check_evaluators(**lacking)
        assert "\n" not in str(refused.value)


SINFO = "echo 'main 2:00:00'; echo 'long 3-00:00:00'; echo 'free infinite'"


def test_the_cluster_is_asked_once_for_each_kind_of_step(programs, tmp_path):
    programs(sinfo=SINFO, sbatch=f'echo "$@" >> {tmp_path}/asked')
    steps = [Ask("merge", mem_mb=2000, runtime=30, partition="main")] * 3
    paid = Ask("evaluate", gpu=1, mem_mb=9000, runtime=4320, account="mylab")
    capacity.check_slurm([*steps, Ask("evaluate", gpu=1, mem_mb=9000, runtime=4320), paid])
    assert (tmp_path / "asked").read_text().splitlines() == [
        "--test-only --mem=2000 --time=30 --cpus-per-task=1 --partition=main --wrap=true",
        "--test-only --mem=9000 --time=4320 --cpus-per-task=1 --gpus=1 --wrap=true",
        "--test-only --mem=9000 --time=4320 --cpus-per-task=1 --account=mylab --gpus=1 --wrap=true",
    ]


@pytest.mark.parametrize(
    ("ask", "pattern"),
    [
        (Ask("merge", partition="mian"), r"no partition 'mian' \(did you mean 'main'\?\)"),
        (Ask("merge", runtime=121, partition="main"), r"merge .*main ends jobs after 120 min"),
        (Ask("merge", gpu=9, partition="free"), r"9 GPUs.*Slurm refuses: .*not available"),
    ],
)
def test_what_the_cluster_cannot_give_is_told_in_one_line(programs, ask, pattern):
    sbatch = "echo 'allocation failure: Requested node configuration is not available' >&2; exit 1"
    programs(sinfo=SINFO, sbatch=sbatch)
    with pytest.raises(UserError, match=pattern) as refused:
        capacity.check_slurm([ask])
    assert "\n" not in str(refused.value)


def test_a_machine_without_slurm_is_told(programs, monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    with pytest.raises(UserError, match="sinfo is not found; start on a login node"):
        capacity.check_slurm([Ask("merge")])


@pytest.mark.parametrize(
    ("limit", "minutes"),
    [("30:00", 30), ("2:00:00", 120), ("1-12:30:00", 2190), ("infinite", float("inf"))],
)
def test_time_limits_as_slurm_prints_them(limit, minutes):
    assert capacity.minutes_of(limit) == minutes


def test_a_node_without_the_environment_is_recognised_in_the_logs(tmp_path):
    python = "/shared/project/.venv/bin/python"
    log = tmp_path / "rule_merge" / "case1" / "7.log"
    log.parent.mkdir(parents=True)
    log.write_text("all is well\n")
    assert capacity.why_jobs_died(tmp_path, 0, python) is None
    for line in (
        f"/var/spool/slurm_script: line 3: {python}: No such file or directory",
        f"sh: 1: {python}: not found",
        f"{python}: No module named snakemake",
    ):
        log.write_text(f"{line}\n")
        told = capacity.why_jobs_died(tmp_path, 0, python)
        assert python in told and "share" in told and "\n" not in told
    assert capacity.why_jobs_died(tmp_path, time.time() + 60, python) is None


def test_retries_and_limits_stand_in_the_profiles():
    folder = ROOT / "workflow" / "profiles"
    paper, slurm = (
        yaml.safe_load((folder / name / "config.yaml").read_text()) for name in ("paper", "slurm")
    )
    assert paper["resources"]["gpu"] == 1 and paper["configfile"] == "paper.yaml"
    assert slurm["executor"] == "slurm" and slurm["slurm-status-command"] == "squeue"
    assert paper["retries"] and slurm["retries"]
    assert (ROOT / "profiles").resolve() == folder or not os.path.islink(ROOT / "profiles")


@pytest.mark.parametrize("extra", [[], ["--profile", "there"], ["--executor=slurm"]])
def test_another_machine_s_profile_takes_no_warm_worker_and_no_number_of_cores_from_here(
    monkeypatch, tmp_path, extra
):
    for name in (client.WORKFLOW, client.VARIABLE, "HF_HUB_DISABLE_PROGRESS_BARS"):
        monkeypatch.setenv(name, "before")
        monkeypatch.delenv(name)
    monkeypatch.delenv("SNAKEMAKE_PROFILE", raising=False)
    monkeypatch.chdir(tmp_path)
    called = []

    def snakemake(arguments):
        called.append(("--cores" in arguments, client.VARIABLE in os.environ))
        return 1

    monkeypatch.setattr(cli, "_snakemake", snakemake)
    assert cli.reproduce(ROOT / "config.yaml", None, extra) == 1
    assert called == [(not extra, not extra)]
