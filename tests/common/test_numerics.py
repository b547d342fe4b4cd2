"""Portable numerics reach every step, give equal bytes, and are refused where they cannot hold."""

import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from common import client, machine, numerics, warm
from common.errors import UserError
from common.manifest import write_manifest

# A step that says what it was given and what its libraries make of it.
PROGRAM = """
import hashlib, json, os
def main(arguments):
    from common import numerics
    import numpy as np, torch
    from merges.arithmetic import kernels
    draw = np.random.default_rng(0)
    vectors = [draw.standard_normal(1000).astype(np.float32) for _ in range(3)]
    merged = kernels.merge_agreeing(vectors, [0.3, 0.7, 0.9], "mean").tobytes()
    gram = kernels.gram(vectors).tobytes()
    merged += kernels.combine(vectors, [0.1, 0.2, 0.3]).tobytes()
    generator = torch.Generator().manual_seed(0)
    first = torch.randn(48, 80, generator=generator).requires_grad_()
    second = torch.randn(80, 64, generator=generator).requires_grad_()
    for step in range(3):
        rows = torch.randn(32, 48, generator=generator)
        loss = torch.logsumexp(torch.nn.functional.silu(rows @ first) @ second, 1).mean()
        loss.backward()
        with torch.no_grad():
            for value in (first, second):
                value -= 0.1 * value.grad
                value.grad = None
    weights = b"".join(value.detach().numpy().tobytes() for value in (first, second))
    hashes = [hashlib.sha256(x).hexdigest() for x in (merged + gram, weights)]
    print(json.dumps({
        "given": {name: os.environ.get(name) for name in numerics.SETTINGS},
        "torch": torch.backends.cpu.get_cpu_capability(),
        "capability": numerics.capability(),
        "merges": hashes[0],
        "training": hashes[1],
    }))
"""
# What a user's shell may hold, and what stands in for another processor.
CAPPED = {
    "ATEN_CPU_CAPABILITY": "default",
    "MKL_CBWR": "AVX2",
    "NUMBA_CPU_NAME": "x86-64",
    "NUMBA_CPU_FEATURES": "-avx",
}
# All steps keep their compiled kernels here; numba keeps those of other settings apart.
KERNELS = tempfile.TemporaryDirectory()
HERE = "AVX2" in machine.describe()["instructions"]
needs_avx2 = pytest.mark.skipif(not HERE, reason="portable numerics need a processor with AVX2")


@pytest.fixture(scope="module")
def portable(tmp_path_factory):
    """What a step says that runs cold with portable numerics."""
    return step(tmp_path_factory.mktemp("portable"), **{numerics.VARIABLE: "portable"})


def step(folder, before=(), **environment):
    """Run PROGRAM as the workflow runs a step; return what it printed."""
    (folder / "program.py").write_text(PROGRAM)
    kept = {k: v for k, v in os.environ.items() if k not in {*numerics.SETTINGS, client.VARIABLE}}
    own = {"PYTHONPATH": f"{Path.cwd()}:{folder}", "NUMBA_CACHE_DIR": KERNELS.name}
    done = subprocess.run(
        [*before, sys.executable, "-c", "from common.client import run; run('program')"],
        env=kept | own | {"OMP_NUM_THREADS": "1"} | environment,
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@needs_avx2
def test_a_step_has_the_portable_settings_whatever_its_environment(portable, tmp_path):
    assert step(tmp_path, **CAPPED, **{numerics.VARIABLE: "portable"}) == portable
    assert portable["given"] == numerics.SETTINGS
    assert portable["torch"] == portable["capability"] == "AVX2"


def test_without_them_other_instructions_train_other_weights_and_merge_the_same(tmp_path):
    capped = step(tmp_path, **CAPPED)
    fast = step(tmp_path)
    assert fast["capability"] == fast["torch"] and capped["capability"] == capped["torch"]
    assert fast["merges"] == capped["merges"]
    assert not HERE or fast["training"] != capped["training"]


@needs_avx2
def test_a_warm_step_is_that_of_a_worker_with_the_settings(portable, tmp_path, monkeypatch):
    for name, value in numerics.environment("portable").items():
        monkeypatch.setenv(name, value)
    with warm.Worker(preload=["torch"]):
        socket = {client.VARIABLE: os.environ[client.VARIABLE]}
        assert step(tmp_path, **numerics.environment("portable"), **socket) == portable


@needs_avx2
@pytest.mark.parametrize(
    ("loaded_with", "told"),
    [
        ({}, "torch is loaded, and MKL_CBWR is not 'COMPATIBLE'; start a new process"),
        (numerics.SETTINGS | {"ATEN_CPU_CAPABILITY": "default"}, "computes with DEFAULT here"),
        (numerics.SETTINGS | {"MKL_CBWR": ""}, "gives other bytes than the portable ones"),
    ],
)
def test_libraries_loaded_without_the_settings_are_refused_in_one_line(loaded_with, told):
    late = {} if not loaded_with else numerics.SETTINGS
    code = (
        # The libraries read their settings at the first use.
        "import os, sys, torch\ntorch.ones(64, 64) @ torch.ones(64, 64).exp()\n"
        "from common import numerics\nfrom common.calling import call\n"
        f"os.environ.update({late | {numerics.VARIABLE: 'portable'}!r})\n"
        "sys.exit(call('report.cli', ['--help']))"
    )
    kept = {k: v for k, v in os.environ.items() if k not in numerics.SETTINGS}
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=kept | loaded_with | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.startswith("error: numerics: portable: ") and told in done.stderr
    assert done.stderr.count("\n") == 1


def on(monkeypatch, name, *instructions, architecture="x86_64"):
    """Pretend to run on another processor, in a process without torch."""
    monkeypatch.setattr(
        numerics, "_processor", lambda: {"processor": name, "instructions": list(instructions)}
    )
    monkeypatch.setattr(numerics.platform, "machine", lambda: architecture)
    monkeypatch.delitem(sys.modules, "torch", raising=False)


@pytest.mark.parametrize(("instructions", "architecture"), [((), "x86_64"), (("NEON",), "aarch64")])
def test_a_processor_without_avx2_is_refused(monkeypatch, instructions, architecture):
    on(monkeypatch, "Old One", *instructions, architecture=architecture)
    with pytest.raises(UserError, match="Old One is no x86-64 with AVX2; set numerics: fast"):
        numerics.check()


def test_portable_manifests_are_equal_between_processors_and_fast_ones_name_theirs(
    tmp_path, monkeypatch
):
    written = {}
    for setting in ("portable", "fast"):
        monkeypatch.setenv(numerics.VARIABLE, setting)
        for name, sets in {"One": ["AVX2"], "Two": ["AVX2", "AVX-512"]}.items():
            on(monkeypatch, name, *sets)
            path = tmp_path / f"{setting}{name}"
            written[setting, name] = write_manifest(path, kind="base", parameters={}, seed=1)
    assert written["portable", "One"] == written["portable", "Two"]
    assert written["portable", "One"]["numerics"] == {"setting": "portable", "capability": "AVX2"}
    assert written["fast", "Two"]["numerics"] == {
        "setting": "fast",
        "capability": "AVX512",
        "processor": "Two",
    }


@pytest.mark.emulation
@pytest.mark.skipif(shutil.which("qemu-x86_64") is None, reason="qemu-x86_64 is not installed")
def test_an_emulated_processor_gives_the_portable_bytes(portable, tmp_path):
    haswell = ["qemu-x86_64", "-cpu", "Haswell"]
    assert step(tmp_path, before=haswell, **{numerics.VARIABLE: "portable"}) == portable
