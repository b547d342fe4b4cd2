"""Whether the libraries may use all of a processor, or only what all x86-64 processors share.

With other instructions the same product of matrices rounds differently, and a training ends with
other weights. The portable settings give equal bytes on every x86-64 processor with AVX2; the
libraries read them once, when they are loaded.
"""

from __future__ import annotations

import functools
import hashlib
import os
import platform
import sys
from typing import Any

from common import machine
from common.errors import UserError

VARIABLE = "BOTTLE_NUMERICS"  # holds the setting of the workflow that starts a step
FAST, PORTABLE = "fast", "portable"
# docs/workflow.md says what each of these settles.
_AVX512 = ("F", "CD", "_KNL", "_KNM", "_SKX", "_CLX", "_CNL", "_ICL", "_SPR")
SETTINGS = {
    "MKL_CBWR": "COMPATIBLE",
    "ATEN_CPU_CAPABILITY": "avx2",
    "ONEDNN_MAX_CPU_ISA": "AVX2",
    "OPENBLAS_CORETYPE": "Haswell",
    "NPY_DISABLE_CPU_FEATURES": " ".join(f"AVX512{name}" for name in _AVX512),
    "NUMBA_CPU_NAME": "haswell",
    "NUMBA_CPU_FEATURES": "+avx2,+fma",
}
_LIBRARIES = ("torch", "numpy", "numba")
# What `_answer` gives with the portable settings and the PyTorch of requirements.lock.
ANSWER = "0e44831aa369cce3"
_REMEDY = "set numerics: fast, or use a machine with AVX2 and the environment of requirements.lock"


def setting() -> str:
    """Return the setting of this process: fast or portable."""
    return os.environ.get(VARIABLE, FAST)


def environment(chosen: str) -> dict[str, str]:
    """Return the variables that a process with a setting needs before it loads a library."""
    return {VARIABLE: chosen, **(SETTINGS if chosen == PORTABLE else {})}


def prepare() -> None:
    """Give this process the portable settings if its workflow asks for them.

    Raises:
        UserError: The libraries were loaded without them, or this processor or PyTorch cannot give
            the portable bytes.
    """
    if setting() != PORTABLE:
        return
    lacking = [name for name, value in SETTINGS.items() if os.environ.get(name) != value]
    loaded = [name for name in _LIBRARIES if name in sys.modules]
    if lacking and loaded:
        raise UserError(
            f"numerics: portable: {loaded[0]} is loaded, and {lacking[0]} is not "
            f"{SETTINGS[lacking[0]]!r}; start a new process with {VARIABLE}={PORTABLE}"
        )
    os.environ.update(SETTINGS)
    check()


def check() -> None:
    """Refuse a processor, or a PyTorch that is loaded, that cannot give the portable bytes.

    Raises:
        UserError: One line with a remedy.
    """
    here = "numerics: portable"
    if platform.machine() != "x86_64" or "AVX2" not in _processor()["instructions"]:
        raise UserError(f"{here}: {_processor()['processor']} is no x86-64 with AVX2; {_REMEDY}")
    torch = sys.modules.get("torch")
    if torch is None or not hasattr(torch, "backends"):  # not loaded, or half
        return
    if (found := torch.backends.cpu.get_cpu_capability()) != "AVX2":
        raise UserError(f"{here}: PyTorch computes with {found} here, not with AVX2; {_REMEDY}")
    if _answer() != ANSWER:
        raise UserError(
            f"{here}: PyTorch {torch.__version__} gives other bytes than the portable ones: it was "
            f"loaded without these settings, or is another build; start a new process, or {_REMEDY}"
        )


def record() -> dict[str, Any]:
    """Return what a manifest says: the setting, and the processor as far as numbers depend on it.

    With portable numerics these are the same on every machine.

    Raises:
        UserError: See `check`.
    """
    if setting() == PORTABLE:
        check()
        return {"setting": PORTABLE, "capability": "AVX2"}
    return {
        "setting": FAST,
        "capability": capability(),
        "processor": _processor()["processor"],
    }


def capability() -> str:
    """Return the instructions that PyTorch's own kernels use on this processor, as it names them.

    PyTorch is not asked, because most merges do without it.
    """
    found = _processor()["instructions"]
    sets = [name for title, name in (("AVX-512", "AVX512"), ("AVX2", "AVX2")) if title in found]
    most = sets[0] if sets else "DEFAULT"
    asked = os.environ.get("ATEN_CPU_CAPABILITY", "").upper()
    return asked if asked in (*sets, "DEFAULT") else most


@functools.cache
def _processor() -> dict[str, Any]:
    return machine.describe()


@functools.cache
def _answer() -> str:
    """Hash what PyTorch makes, on one thread, of draws, products and functions of fixed sizes."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # two threads add up a product in another order
    drawn = torch.Generator().manual_seed(1)
    left, right = (torch.randn(shape, generator=drawn) for shape in ((90, 128), (128, 70)))
    product = left @ right
    results = [left, product, torch.softmax(product, 1), torch.exp(left)]
    results.append(left.double().T @ product.double())
    torch.set_num_threads(threads)
    return hashlib.sha256(b"".join(value.numpy().tobytes() for value in results)).hexdigest()[:16]
