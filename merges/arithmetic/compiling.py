"""Kernels that numba compiles once on a machine, and that later processes only load.

A process that merges would need half a CPU second and 80 MB to have numba ready. So the machine
code of all kernels of a module is kept in one file, next to the source or in the user's cache, and
llvmlite, a part of numba, loads it. What is kept is bound to the source, to numba and to the
processor; a file that is damaged is made again.
"""

from __future__ import annotations

import base64
import ctypes
import hashlib
import json
import os
import sys
import threading
import types as python_types
from collections.abc import Callable, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from common.errors import UserError
from common.files import write_bytes
from common.hashes import cache_folder

_SIMPLE: dict[str, Any] = {
    "float32": ctypes.c_float,
    "float64": ctypes.c_double,
    "int64": ctypes.c_int64,
    "void": None,
}
_BYTES = {"uint8": 1, "uint16": 2, "uint32": 4, "float32": 4, "float64": 8, "int64": 8}
_DIGEST = 32  # bytes of a sha256
LANES = 16  # values that `within` compares at once, as many as a register has at most
Code = tuple[str, bytes]  # an object file, and the name in it of the function


class Kernels:
    """The kernels of one module, compiled and loaded together at the first call of one of them.

    Calls leave Python's lock free, so that threads merge side by side. Every operation rounds once
    and nothing is reordered: results are the same on every processor.
    """

    def __init__(self) -> None:
        self._functions: dict[str, tuple[Callable, str, tuple[str, ...]]] = {}
        self._loaded: dict[str, Callable] = {}
        self._engine: Any = None  # owns the loaded code
        self._lock = threading.Lock()

    def kernel(self, result: str, *arguments: str) -> Callable[[Callable], Callable]:
        """Register a function of numbers and pointers to be compiled.

        Args:
            result: Type of the result.
            arguments: Types of its parameters: float32, float64, int64, and with a ``*`` behind
                it a pointer to the first of some values; ``void`` for no result.

        Returns:
            A decorator; what it returns takes an array, or None, for a pointer, and for a pointer
            to pointers what `addresses` returns.
        """

        def register(function: Callable) -> Callable:
            name = function.__name__
            self._functions[name] = (function, result, arguments)

            sizes = [_BYTES.get(kind[:-1], 8) if "*" in kind else 0 for kind in arguments]

            def call(*given: Any) -> Any:
                if not self._loaded:
                    self.load()
                places = (_place(v, s) if s else v for v, s in zip(given, sizes, strict=True))
                return self._loaded[name](*places)

            return call

        return register

    def load(self) -> None:
        """Load all kernels, and compile them first where this machine has not yet."""
        with self._lock:
            if self._loaded:
                return
            key = self._key()
            objects = next(filter(None, (_kept(path) for path in _places(key))), None)
            if objects is None:
                objects = _compile(self._functions)
                _keep(objects, key)
            self._engine, addresses = _link(objects)
            self._loaded = {
                name: _prototype(result, arguments)(addresses[name])
                for name, (_, result, arguments) in self._functions.items()
            }

    def _key(self) -> str:
        import llvmlite.binding as llvm

        processor = [llvm.get_host_cpu_name(), llvm.get_host_cpu_features().flatten()]
        processor += [os.environ.get(f"NUMBA_CPU_{name}", "") for name in ("NAME", "FEATURES")]
        files = {entry[0].__code__.co_filename for entry in self._functions.values()}
        sources = [Path(file).read_text(encoding="utf-8") for file in (*sorted(files), __file__)]
        signatures = [entry[1:] for entry in self._functions.values()]
        about = [metadata.version("numba"), sys.version, processor, sources, signatures]
        return hashlib.sha256(json.dumps(about).encode()).hexdigest()[:16]


def _place(values: np.ndarray | None, size: int) -> int | None:
    """Return an array's address, and refuse one that a kernel would misread."""
    if values is None:
        return None
    if values.itemsize != size or not values.flags.c_contiguous:
        raise ValueError(f"a kernel wants values of {size} bytes, one after another")
    return values.ctypes.data


def addresses(arrays: Sequence[np.ndarray]) -> np.ndarray:
    """Return where the values of contiguous arrays are, for a kernel; keep the arrays meanwhile."""
    return np.array([_place(values, values.itemsize) for values in arrays], dtype=np.uint64)


def _prototype(result: str, arguments: tuple[str, ...]) -> Any:
    simple = [ctypes.c_void_p if "*" in name else _SIMPLE[name] for name in arguments]
    return ctypes.CFUNCTYPE(_SIMPLE[result], *simple)


def _places(key: str) -> list[Path]:
    folders = [Path(__file__).parent / "__pycache__", cache_folder()]
    return [folder / f"kernels-{key}.bin" for folder in folders if folder is not None]


def _kept(path: Path) -> dict[str, Code] | None:
    """Return what is kept in a file, None where it is not there or damaged."""
    try:
        content = path.read_bytes()
    except OSError:
        return None
    digest, text = content[:_DIGEST], content[_DIGEST:]
    if hashlib.sha256(text).digest() != digest:
        return None
    return {name: (symbol, base64.b64decode(code)) for name, symbol, code in json.loads(text)}


def _keep(objects: Mapping[str, Code], key: str) -> None:
    rows = [
        [name, symbol, base64.b64encode(code).decode()] for name, (symbol, code) in objects.items()
    ]
    text = json.dumps(rows).encode()
    content = hashlib.sha256(text).digest() + text
    for path in _places(key):
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_bytes(path, content)
            return
        except (OSError, UserError):  # compiled anew by every process
            continue


def _compile(functions: Mapping[str, tuple[Callable, str, tuple[str, ...]]]) -> dict[str, Code]:
    """Compile functions to machine code, an object file each, about a CPU second a function."""
    import numba
    from numba import types

    def kind(name: str) -> Any:
        if name.endswith("*"):
            return types.CPointer(kind(name[:-1]))
        return types.void if name == "void" else getattr(types, name)

    found = {}
    for name, (function, result, arguments) in functions.items():
        signature = kind(result)(*map(kind, arguments))
        # The function's own names, with the operations that numba lacks as it can compile them.
        names = {**function.__globals__, **_operations()}
        own = python_types.FunctionType(function.__code__, names, name)
        compiled = numba.cfunc(signature, error_model="numpy")(own)
        _, _, (code, *_) = compiled._library.serialize_using_object_code()
        found[name] = (compiled._wrapper_name, bytes(code))
    return found


def _operations() -> dict[str, Any]:
    """Return the operations that numba lacks, which Python runs by the functions of their names."""
    from llvmlite import ir
    from numba import types
    from numba.core import cgutils
    from numba.extending import intrinsic

    # Each is a type of the result and a function that writes it in LLVM's language.
    single, bits_type = ir.FloatType(), ir.IntType(32)

    def room_of(kind: Any, single: Any) -> Any:
        @intrinsic(prefer_literal=True)
        def room(context, count):
            def build(_, builder, signature, given):
                return cgutils.alloca_once(builder, single, size=count.literal_value)

            return types.CPointer(kind)(count), build

        return room

    @intrinsic
    def fused(context, x, y, z):
        return x(x, y, z), lambda _, builder, signature, given: builder.fma(*given)

    @intrinsic
    def as_float(context, bits):
        def build(_, builder, signature, given):
            return builder.bitcast(builder.trunc(given[0], bits_type), single)

        return types.float32(types.uint64), build

    @intrinsic
    def as_bits(context, value):
        def build(_, builder, signature, given):
            return builder.bitcast(given[0], bits_type)

        return types.uint32(types.float32), build

    @intrinsic
    def within(context, values, place, low, high):
        def build(context, builder, signature, given):
            vector, truths = ir.VectorType(single, LANES), ir.IntType(LANES)
            first = builder.gep(given[0], [given[1]])
            block = builder.load(builder.bitcast(first, vector.as_pointer()), align=4)
            above, below = (
                builder.fcmp_ordered(order, block, _repeated(builder, bound, vector))
                for order, bound in ((">=", given[2]), ("<=", given[3]))
            )
            bits = builder.bitcast(builder.and_(above, below), truths)
            return builder.zext(bits, ir.IntType(64))

        return types.uint64(types.CPointer(types.float32), types.int64, low, high), build

    @intrinsic
    def lowest(context, bits):
        def build(_, builder, signature, given):
            return builder.cttz(given[0], ir.Constant(ir.IntType(1), 1))

        return types.int64(types.uint64), build

    return {
        "fused": fused,
        "within": within,
        "lowest": lowest,
        "as_float": as_float,
        "as_bits": as_bits,
        "singles": room_of(types.float32, single),
        "doubles": room_of(types.float64, ir.DoubleType()),
    }


def _repeated(builder: Any, value: Any, vector: Any) -> Any:
    """Fill a vector of LLVM's language with one value."""
    from llvmlite import ir

    place, empty = ir.Constant(ir.IntType(32), 0), ir.Constant(vector, ir.Undefined)
    one = builder.insert_element(empty, value, place)
    return builder.shuffle_vector(
        one, empty, ir.Constant(ir.VectorType(ir.IntType(32), vector.count), None)
    )


# What kernels call, as Python runs it, where a kernel is called without compilation.


def singles(count: int) -> np.ndarray:
    """Return room for float32 values, for the time of a call."""
    return np.empty(count, dtype=np.float32)


def doubles(count: int) -> np.ndarray:
    """Return room for float64 values, for the time of a call."""
    return np.empty(count)


def fused(x: np.float32, y: np.float32, z: np.float32) -> np.float32:
    """Compute x * y + z with one rounding; here with two where float64 cannot hold the sum."""
    return np.float32(np.float64(x) * np.float64(y) + np.float64(z))


def as_float(bits: np.uint64) -> np.float32:
    """Return the float32 whose bits are the lower 32 of an unsigned integer."""
    return np.uint32(bits & np.uint64(0xFFFFFFFF)).view(np.float32)


def as_bits(value: np.float32) -> np.uint32:
    """Return the bits of a float32."""
    return np.float32(value).view(np.uint32)


def within(values: np.ndarray, place: int, low: np.float32, high: np.float32) -> np.uint64:
    """Compare LANES float32 values from a place on with two bounds: a bit for each inside."""
    block = values[place : place + LANES]
    inside = (low <= block) & (block <= high)
    return np.uint64(sum(1 << int(k) for k in np.flatnonzero(inside)))


def lowest(bits: np.uint64) -> int:
    """Return the place of the lowest bit that is set; there must be one."""
    return (int(bits) & -int(bits)).bit_length() - 1


def _link(objects: Mapping[str, Code]) -> tuple[Any, dict[str, int]]:
    """Load object files; return what owns the code, and each function's address."""
    import llvmlite.binding as llvm

    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    machine = llvm.Target.from_default_triple().create_target_machine()
    engine = llvm.create_mcjit_compiler(llvm.parse_assembly(""), machine)
    for _, code in objects.values():
        engine.add_object_file(llvm.ObjectFileRef.from_data(code))
    engine.finalize_object()
    return engine, {n: engine.get_function_address(symbol) for n, (symbol, _) in objects.items()}
