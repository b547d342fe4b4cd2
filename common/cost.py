"""What a step cost: measured time, memory and bytes, and what was counted."""

from __future__ import annotations

import contextlib
import resource
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from common import machine
from common.calling import command
from common.files import write_json

_ROOT = Path(__file__).resolve().parent.parent
_IO = Path("/proc/self/io")
_mapped = 0  # bytes that this process has read through memory mappings
_checked = 0.0  # CPU seconds of comparing files with their manifests, since they were reported
_held = 0  # GPUs held by this process and by those that work for it


class Cost:
    """Counts of a running step.

    Attributes:
        counted: By name, sums of the reported amounts: tokens, FLOPs, evaluations, bytes.
    """

    def __init__(self) -> None:
        self.counted: dict[str, float] = {}

    def count(self, **amounts: float) -> None:
        """Add amounts (tokens, FLOPs, evaluations ...) to the step's counts."""
        for name, amount in amounts.items():
            self.counted[name] = self.counted.get(name, 0) + amount


def count_mapped(amount: int) -> None:
    """Add bytes read through a memory mapping, which the kernel does not count as read."""
    global _mapped
    _mapped += amount


def count_check(seconds: float) -> None:
    """Add CPU seconds that a comparison of files with their manifest took."""
    global _checked
    _checked += seconds


def hold_gpus(count: int) -> None:
    """Record on how many GPUs this process and those that work for it hold memory."""
    global _held
    _held = max(_held, count)


def cpu_seconds() -> float:
    """Return the CPU seconds of this process and of the children that it has waited for.

    They are counted in microseconds; `os.times` has ticks of ten milliseconds, more than a merge
    of a tiny model takes.
    """
    usages = map(resource.getrusage, (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def _bytes_moved() -> tuple[int, int]:
    """Return what this process and the children it has waited for asked to read and to write.

    These are `rchar` and `wchar` of the kernel, so that a file in the page cache counts as one
    from the disk does: the numbers say what a step needs and not what ran before it.
    """
    try:
        lines = dict(line.split(": ") for line in _IO.read_text().splitlines())
    except OSError:  # no such file on systems other than Linux
        return _mapped, 0
    return int(lines["rchar"]) + _mapped, int(lines["wchar"])


def _gpu_in_use() -> tuple[int, float]:
    """Return on how many GPUs this process holds memory, and its peak on any in MB."""
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_initialized():
        return 0, 0.0
    peaks = [torch.cuda.max_memory_reserved(i) for i in range(torch.cuda.device_count())]
    return max(_held, sum(peak > 0 for peak in peaks)), max(peaks, default=0) / 1e6


@contextlib.contextmanager
def measure(path: Path | str) -> Iterator[Cost]:
    """Measure a block and write its cost when it ends well.

    The file is separate from manifests and scores, because no measurement repeats exactly. As JSON
    it holds `wall_s` and `cpu_s` in seconds; `gpu_s`, the wall seconds times the GPUs that this
    process holds; `peak_rss_mb` and `peak_gpu_mb` in MB (10^6 bytes, of the process so far);
    `bytes_read` and `bytes_written` as in `_bytes_moved`; `checks_cpu_s`, the CPU seconds that
    this process has spent on comparing files with their manifests; `counted`; and, because equal
    work must give equal manifests, the `command` and the `commit` that did it.

    Yields:
        The counter to which the block reports.
    """
    global _checked
    cost = Cost()
    wall, cpu, moved = time.monotonic(), cpu_seconds(), _bytes_moved()
    yield cost
    wall_s = time.monotonic() - wall
    read, written = (after - before for after, before in zip(_bytes_moved(), moved, strict=True))
    gpus, peak_gpu_mb = _gpu_in_use()
    cpu_s = cpu_seconds() - cpu  # without that of asking for the commit
    write_json(
        path,
        {
            "wall_s": round(wall_s, 3),
            "cpu_s": round(cpu_s, 3),
            "checks_cpu_s": round(_checked, 4),
            "gpu_s": round(wall_s * gpus, 3),
            "peak_rss_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6),
            "peak_gpu_mb": round(peak_gpu_mb),
            "bytes_read": read,
            "bytes_written": written,
            "counted": cost.counted,
            "command": command(),
            "commit": machine.commit(_ROOT),
        },
    )
    _checked = 0.0  # the next step of this process has its own
