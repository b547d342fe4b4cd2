"""The registry of merge methods, read from their source files without running them.

A method is a function with the `method` decorator in a file of `merges/methods/`, or in
`merges/*/method.py`. Its name is the function's; its keyword-only parameters are what
a configuration can set. Knowing all this must not cost an import of torch: a workflow reads it
at every start.
"""

from __future__ import annotations

import ast
import functools
import importlib
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

from common.errors import UserError, nearest
from merges.engine import parameters
from merges.statistics.kinds import KINDS

FOLDER = Path(__file__).resolve().parent.parent
NEEDS = ("base", "data", "evaluation")
Unit = Literal["values", "rows", "tensor"]
_PER_TENSOR = ["base", "experts", "context"]
_WHOLE_MODEL = ["request"]


def method(
    *,
    title: str,
    paper: str = "",
    needs: Collection[str] = (),
    whole_model: bool = False,
    ordered: bool = False,
    experts: int | None = None,
    unit: Unit = "tensor",
    prepare: str | None = None,
    arrays: bool = False,
    patterns: str | None = None,
    statistics: Mapping[str, str] | None = None,
    one_by_one: bool = False,
) -> Callable[[Callable], Callable]:
    """Register a merge method.

    Without `whole_model` the function merges one parameter at a time, or a piece of one:
    ``f(base, experts, context, *, ...) -> Tensor`` with `base` (Tensor, or None where the merge
    has none), `experts` (a list of tensors of the same shape) and a
    `merges.engine.requests.TensorContext`. All tensors are float32, or float64 where an input is
    stored so or the user asks for it; they are the function's own to overwrite. The engine rounds
    the result to the stored type.

    The smaller the `unit`, the less memory and time a merge takes, because a piece stays in the
    cache: a method whose result depends only on the values at the same position acts on
    ``values``, one that looks along rows on ``rows``. What else it must know of the whole
    parameter (a norm, a threshold) a second function of the file finds beforehand, which
    `prepare` names: ``f(pieces, *, ...) -> Any`` from `merges.engine.pieces.Pieces`, which it may
    go through several times, and those of the method's parameters that it declares. What it returns
    is `context.prepared`. Where the method has a parameter ``scope`` of ``tensor | model`` and it
    is set to ``model``, the preparation sees all parameters of the model that are merged, once.
    With `arrays` the function, and `prepare`, work on numpy arrays as well as on tensors: they use
    operators in place (``-=``, ``*=``) and functions that know both, such as
    `merges.arithmetic.combination.combine`. In float32 on the CPU they are then given arrays, and a
    merge needs no torch. For bfloat16, `patterns` names a third function, ``f(base, experts,
    context, *, ...)``, which merges the stored patterns (uint16) in one pass by a kernel of
    `merges.arithmetic.patterns`, bit for bit as the method does, or returns None where it cannot.

    A method with a parameter ``preset`` keeps its sets of values in a literal constant PRESETS of
    its file, by name, and what holds without one in DEFAULTS; they stand in for parameters that
    are null.

    `base` is None if the merge has no base or the method does not need ``base``. Exception: a
    method whose parameter ``origin`` is set to ``base`` gets it.

    With `whole_model` it is ``f(request, *, ...)`` from a
    `merges.engine.requests.WholeModelRequest` to a `merges.engine.requests.WholeModelResult`. A
    number per expert reaches it as a mapping by expert name, the other kind of method as a list in
    the order of `experts`.

    Args:
        title: The name shown in tables.
        paper: Where it was published: ``arXiv:2306.01708`` or the like. A method without is in no
            table of the documentation, and its docstring needs no ``Source:``.
        needs: Of ``base``, ``data`` (calibration files), ``evaluation``.
        whole_model: Whether it takes whole models instead of single parameters.
        ordered: Whether the order of the experts matters; without it the engine sorts them by
            name, so that no rounding depends on the order given.
        experts: How many experts it takes, None for any number.
        unit: What it is given at a time: ``values`` (flat pieces), ``rows`` ([rows, columns])
            or each ``tensor``.
        prepare: Name of the function of the same file that prepares its work.
        arrays: Whether it takes numpy arrays too.
        patterns: Name of the function of the same file that merges patterns of bfloat16; with
            `arrays` and the unit ``values``.
        statistics: The models whose statistics it wants, each with their kind: ``{"experts":
            "gram"}``, ``{"base": "channels"}``; the kinds are those of `merges.statistics.kinds`.
            They are `context.statistics`, by the model's name.
        one_by_one: Whether `experts` are read from disk each time that one is looked at, so that
            memory does not grow with their number, in pieces some hundred times as large: where a
            piece costs much however small it is. For the unit ``rows``.
    """
    return lambda function: function


@dataclass(frozen=True)
class ParameterInfo:
    """One parameter of a method: its name, source annotation, kind of value and default."""

    name: str
    annotation: str
    kind: parameters.Kind
    default: Any


@dataclass(frozen=True)
class MethodInfo:
    """What the registry knows of a method; see `method` for the meaning of the fields."""

    name: str
    title: str
    paper: str
    needs: frozenset[str]
    whole_model: bool
    ordered: bool
    experts: int | None
    unit: Unit
    prepare: str | None
    summary: str
    doc: str
    parameters: dict[str, ParameterInfo]
    module: str
    path: Path
    presets: Mapping[str | None, Mapping[str, Any]] = field(default_factory=dict)
    arrays: bool = False
    patterns: str | None = None
    statistics: Mapping[str, str] = field(default_factory=dict)
    one_by_one: bool = False


def _files(folder: Path) -> list[Path]:
    return sorted([*folder.glob("methods/*.py"), *folder.glob("*/method.py")])


def _constants(tree: ast.Module) -> dict[str, Any]:
    constants = {}
    for node in tree.body:
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            try:
                constants[node.targets[0].id] = ast.literal_eval(node.value)
            except ValueError:
                continue
    return constants


def _parameter(
    argument: ast.arg, default: ast.expr | None, constants: Mapping[str, Any]
) -> ParameterInfo:
    if argument.annotation is None or default is None:
        raise UserError(f"parameter {argument.arg} needs a type annotation and a default")
    if isinstance(default, ast.Name) and default.id in constants:
        value = constants[default.id]
    else:
        try:
            value = ast.literal_eval(default)
        except ValueError:
            raise UserError(
                f"parameter {argument.arg}: the default must be a literal, or the name of a "
                "literal constant of the same file"
            ) from None
    annotation = ast.unparse(argument.annotation)
    kind = parameters.resolve(annotation)
    try:
        kind.check(value)
    except ValueError as error:
        raise UserError(f"parameter {argument.arg}: default {error}") from None
    return ParameterInfo(argument.arg, annotation, kind, value)


def _info(
    function: ast.FunctionDef, decorator: ast.Call, path: Path, constants: Mapping[str, Any]
) -> MethodInfo:
    given = {item.arg: ast.literal_eval(item.value) for item in decorator.keywords}
    doc = ast.get_docstring(function)
    if not doc or not given.get("title"):
        raise UserError("a method needs a title and a docstring")
    needs = frozenset(given.get("needs", ()))
    if unknown := needs - set(NEEDS):
        raise UserError(f"unknown need {sorted(unknown)[0]!r}{nearest(sorted(unknown)[0], NEEDS)}")
    unit = given.get("unit", "tensor")
    if unit not in get_args(Unit):
        raise UserError(f"unknown unit {unit!r}{nearest(unit, get_args(Unit))}")
    for kind in (given.get("statistics") or {}).values():
        if kind not in KINDS:
            raise UserError(f"unknown statistics {kind!r}{nearest(kind, KINDS)}")
    whole_model = bool(given.get("whole_model", False))
    expected = _WHOLE_MODEL if whole_model else _PER_TENSOR
    if [argument.arg for argument in function.args.args] != expected:
        raise UserError(f"the positional arguments must be ({', '.join(expected)})")
    # The positional arguments are the engine's, those after the * the configuration's.
    pairs = zip(function.args.kwonlyargs, function.args.kw_defaults, strict=True)
    found = [_parameter(argument, default, constants) for argument, default in pairs]
    module = ".".join(path.relative_to(path.parents[2]).with_suffix("").parts)
    return MethodInfo(
        name=function.name,
        title=given["title"],
        paper=given.get("paper", ""),
        needs=needs,
        whole_model=whole_model,
        ordered=bool(given.get("ordered", False)),
        experts=given.get("experts"),
        unit=unit,
        prepare=given.get("prepare"),
        arrays=bool(given.get("arrays", False)),
        patterns=given.get("patterns"),
        statistics=given.get("statistics") or {},
        one_by_one=bool(given.get("one_by_one", False)),
        summary=doc.splitlines()[0],
        doc=doc,
        parameters={parameter.name: parameter for parameter in found},
        module=module,
        path=path,
        presets={None: constants.get("DEFAULTS", {}), **constants.get("PRESETS", {})},
    )


def _registered(tree: ast.Module) -> Iterator[tuple[ast.FunctionDef, ast.Call]]:
    """Yield the methods of a file with their decorators."""
    for node in tree.body:
        if not isinstance(node, ast.FunctionDef):
            continue
        for decorator in node.decorator_list:
            match decorator:
                case ast.Call(func=ast.Name(id="method")):
                    yield node, decorator


@functools.cache
def describe() -> dict[str, MethodInfo]:
    """Describe every method, without importing any.

    Raises:
        UserError: A method's file does not follow the rules of `method`.
    """
    found: dict[str, MethodInfo] = {}
    for path in _files(FOLDER):
        source = path.read_text(encoding="utf-8")
        if "@method(" not in source:
            continue
        try:
            tree = ast.parse(source)
        except SyntaxError as error:
            raise UserError(f"{path}: {error}; correct the file") from None
        for function, decorator in _registered(tree):
            try:
                info = _info(function, decorator, path, _constants(tree))
            except (UserError, ValueError) as error:
                raise UserError(f"{path}, method {function.name}: {error}") from None
            if info.name in found:
                raise UserError(
                    f"{path}: {found[info.name].path} has a method {info.name} already; rename one"
                )
            found[info.name] = info
    return dict(sorted(found.items()))


def info(name: str) -> MethodInfo:
    """Describe one method.

    Raises:
        UserError: No method has this name.
    """
    methods = describe()
    if name not in methods:
        raise UserError(f"unknown method {name!r}{nearest(name, methods)}")
    return methods[name]


def load(name: str) -> Callable:
    """Import a method's file and return its function."""
    return getattr(importlib.import_module(info(name).module), name)


def load_prepare(name: str) -> Callable | None:
    """Import the function that prepares a method's work, None where it has none.

    Raises:
        UserError: No method has this name, or its file lacks the function.
    """
    return _named(name, "prepare")


def load_patterns(name: str) -> Callable | None:
    """Import the function that merges patterns of bfloat16, None where there is none.

    Raises:
        UserError: As `load_prepare`.
    """
    return _named(name, "patterns")


def _named(name: str, what: str) -> Callable | None:
    about = info(name)
    wanted = getattr(about, what)
    if wanted is None:
        return None
    module = importlib.import_module(about.module)
    if not hasattr(module, wanted):
        raise UserError(
            f"{about.path}: method {name} names a function {wanted!r} under {what}, but the file "
            "has none; correct the name"
        )
    return getattr(module, wanted)


def check(name: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """Check values for some of a method's parameters.

    Args:
        name: The method.
        given: Values by parameter name.

    Raises:
        UserError: The method or a parameter is unknown, or a value is out of its range.
    """
    known = info(name).parameters
    checked = {}
    for parameter, value in given.items():
        if parameter not in known:
            hint = nearest(parameter, known) if known else " (it has none)"
            raise UserError(f"method {name} has no parameter {parameter!r}{hint}")
        kind = known[parameter].kind
        try:
            checked[parameter] = kind.check(value)
        except ValueError as error:
            raise UserError(
                f"method {name}, parameter {parameter}: {error}; give {kind.describe()}"
            ) from None
    return checked


def validate(name: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """Resolve a method's parameters: check what is given, fill in defaults.

    Args:
        name: The method.
        given: Values by parameter name.

    Returns:
        Every parameter of the method, in the order of its signature.

    Raises:
        UserError: The method or a parameter is unknown, or a value is out of its range.
    """
    checked = check(name, given)
    defaults = {item.name: item.kind.check(item.default) for item in info(name).parameters.values()}
    values = {**defaults, **checked}
    presets = info(name).presets
    chosen = {**presets.get(None, {}), **presets.get(values.get("preset"), {})}
    return {key: chosen.get(key) if value is None else value for key, value in values.items()}


def sources(name: str) -> tuple[str, ...]:
    """Name the entry points that determine a method's results; see `common.sources.reachable`.

    They are the engine's and the method's file. A new method's file is in nobody else's list, so it
    leaves their results valid.
    """
    path = info(name).path
    engine = ("merges/engine/layer_rules.py", "merges/engine/run.py")
    return (*engine, str(path.relative_to(FOLDER.parent)))
