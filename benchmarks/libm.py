"""Hash the mathematical functions of the C library, to compare two versions or processors.

    python benchmarks/libm.py
    GLIBC_TUNABLES=glibc.cpu.hwcaps=-AVX2,-FMA,-AVX python benchmarks/libm.py
    FOLDER/ld-linux-x86-64.so.2 --library-path FOLDER:/usr/lib/x86_64-linux-gnu python ...

The third form takes another version from FOLDER, as `dpkg -x libc6_*.deb` unpacks it.
"""

from __future__ import annotations

import ctypes
import hashlib
import math
import platform
import random
import struct

DOUBLE = ("exp", "cos", "sin", "tanh", "expm1", "log", "log1p", "log2", "log10", "pow")
SINGLE = ("expf", "logf", "cosf", "sinf", "tanhf", "erff")


def main() -> None:
    """Print the version of the library and a hash for each function."""
    draw = random.Random(1)
    values = [draw.uniform(-30, 30) for _ in range(300_000)]
    print(*platform.libc_ver())
    for name in DOUBLE:
        function = getattr(math, name)
        near = [abs(x) if name.startswith("log") else x for x in values]
        done = [math.pow(abs(x), x / 27) if name == "pow" else function(x) for x in near]
        digest = hashlib.sha256(struct.pack(f"{len(done)}d", *done)).hexdigest()
        print(f"{name:<6} {digest[:12]}")
    library = ctypes.CDLL("libm.so.6")
    for name in SINGLE:
        function = getattr(library, name)
        function.restype, function.argtypes = ctypes.c_float, [ctypes.c_float]
        done = [function(abs(x)) for x in values[:60_000]]
        digest = hashlib.sha256(struct.pack(f"{len(done)}f", *done)).hexdigest()
        print(f"{name:<6} {digest[:12]}")


if __name__ == "__main__":
    main()
