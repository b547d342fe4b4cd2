"""What has to be set before vLLM is imported, in this process or in a replica's."""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path

from common.errors import UserError

# Read when vLLM is imported. One process instead of three starts in a third of the time; the CPU
# build would otherwise take most of the memory, and bind every run to the same cores.
_ENVIRONMENT = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_COMPUTE_NANS_IN_LOGITS": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_LOGGING_LEVEL": "ERROR",
}


class _CPUBuild(metadata.Distribution):
    """Answers for the distribution `vllm` where its CPU build is installed, called `vllm-cpu`.

    lm-eval asks for the version of `vllm`; vLLM itself knows its CPU build by the version's end.
    """

    def read_text(self, filename: str) -> str | None:
        """Return the metadata, the only file there is."""
        if filename != "METADATA":
            return None
        return f"Metadata-Version: 2.1\nName: vllm\nVersion: {metadata.version('vllm-cpu')}+cpu\n"

    def locate_file(self, path: str | os.PathLike[str]) -> Path:
        """Say where a file would be."""
        return Path(path)


class _Finder(metadata.DistributionFinder):
    """Finds `_CPUBuild` when `vllm` is asked for by name."""

    def find_spec(self, *_: object) -> None:
        """Find no module."""

    def find_distributions(
        self, context: metadata.DistributionFinder.Context | None = None
    ) -> Iterable[metadata.Distribution]:
        """Yield what fits the context."""
        if context is not None and context.name == "vllm":
            yield _CPUBuild()


def prepare() -> None:
    """Set what vLLM and lm-eval read when they are imported.

    Raises:
        UserError: vLLM is not installed.
    """
    if importlib.util.find_spec("vllm") is None:
        raise UserError(
            "vLLM is not installed here: use --backend hf, or an environment with vLLM "
            "(docs/evaluation.md)"
        )
    for variable, value in _ENVIRONMENT.items():
        os.environ.setdefault(variable, value)
    try:
        metadata.version("vllm")
    except metadata.PackageNotFoundError:
        sys.meta_path.append(_Finder())
