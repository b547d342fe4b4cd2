"""The registry: its static view is the truth, it needs no torch, it refuses what is wrong."""

from __future__ import annotations

import inspect
import re
import subprocess
import sys
from pathlib import Path

import pytest

from common.errors import UserError
from common.sources import reachable
from merges.engine import parameters, registry

SHIPPED = {"dare_ties", "linear", "slerp", "task_arithmetic", "ties"}

EXTRA = '''
from __future__ import annotations
from merges.engine.parameters import Density, Scale
from merges.engine.registry import method

@method(title="Halfway", paper="nobody", needs={"base"})
def halfway(base, experts, context, *, part: Density = 0.5, push: Scale = -1.0):
    """Go half of the way."""
    return base + part * push * (experts[0] - base)
'''


@pytest.fixture
def house(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder of methods in place of the real one."""
    folder = tmp_path / "merges" / "methods"
    folder.mkdir(parents=True)
    monkeypatch.setattr(registry, "FOLDER", folder.parent)
    registry.describe.cache_clear()
    yield folder
    registry.describe.cache_clear()


def in_fresh_python(code: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=registry.FOLDER.parent
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_shipped_methods_are_there() -> None:
    assert set(registry.describe()) >= SHIPPED


@pytest.mark.parametrize("name", registry.describe())
def test_static_description_is_what_python_sees(name: str) -> None:
    info, function = registry.info(name), registry.load(name)
    seen = inspect.signature(function).parameters.values()
    keywords = [item for item in seen if item.kind is item.KEYWORD_ONLY]
    found = [(item.name, item.annotation, item.default) for item in keywords]
    expected = [(p.name, p.annotation, p.default) for p in info.parameters.values()]
    assert found == expected
    assert function.__name__ == name
    assert Path(inspect.getfile(function)) == info.path
    assert inspect.getdoc(function) == inspect.cleandoc(info.doc)


@pytest.mark.parametrize("name", registry.describe())
def test_every_parameter_is_explained_in_the_docstring(name: str) -> None:
    info = registry.info(name)
    for parameter in info.parameters:
        assert re.search(rf"^ +{parameter}: ", info.doc, re.MULTILINE), parameter
    assert "Source:" in info.doc or not info.paper


def test_the_listing_needs_no_torch_and_shows_everything() -> None:
    shown = in_fresh_python(
        "import sys\n"
        "from merges import cli\n"
        "assert cli.main(['--list']) == 0\n"
        "assert not {'torch', 'numpy', 'transformers'} & set(sys.modules)\n"
    )
    for name, info in registry.describe().items():
        assert f"{name}: {info.title}" + f" ({info.paper})" * bool(info.paper) in shown
        for parameter in info.parameters:
            assert f"      {parameter}: " in shown
    assert "density: number in (0, 1] (default 0.2)" in shown
    assert 'merge: mean | sum (default "mean")' in shown
    assert "2 experts, in order" in shown


def test_describing_needs_no_torch() -> None:
    in_fresh_python(
        "import sys\n"
        "from merges.engine import registry\n"
        "registry.describe(); [registry.sources(name) for name in registry.describe()]\n"
        "registry.validate('ties', {'density': 0.3})\n"
        "assert 'torch' not in sys.modules\n"
    )


def test_defaults_are_filled_in_and_numbers_typed() -> None:
    filled = registry.validate("ties", {"scale": 2})
    assert filled == {
        "density": 0.2,
        "scale": 2.0,
        "weights": None,
        "merge": "mean",
        "scope": "tensor",
    }
    assert type(filled["scale"]) is float
    assert registry.check("ties", {"scale": 2}) == {"scale": 2.0}


@pytest.mark.parametrize(
    ("method", "given", "message"),
    [
        ("tise", {}, r"unknown method 'tise' \(did you mean 'ties'\?\)"),
        ("ties", {"densty": 0.5}, r"ties has no parameter 'densty' \(did you mean 'density'\?\)"),
        ("ties", {"density": 0}, r"density: 0 is out of range; give number in \(0, 1\]"),
        ("ties", {"density": 1.5}, r"density: 1.5 is out of range"),
        ("ties", {"density": "1e-3"}, r"density: '1e-3' is no number; YAML"),
        ("ties", {"density": True}, r"density: True is no number"),
        ("ties", {"scale": float("nan")}, r"scale: nan is not finite"),
        ("ties", {"scale": float("inf")}, r"scale: inf is not finite"),
        ("ties", {"merge": "men"}, r"merge: 'men' is unknown \(did you mean 'mean'\?\)"),
        ("ties", {"weights": [1, -1]}, r"weights: -1 is out of range"),
        ("ties", {"weights": "1"}, r"weights: '1' is neither a list nor a mapping"),
        ("linear", {"normalize": 1}, r"normalize: 1 is neither true nor false"),
        ("slerp", {"t": 1.01}, r"t: 1.01 is out of range; give number in \[0, 1\]"),
    ],
)
def test_bad_parameters_are_refused_with_the_mend(method: str, given: dict, message: str) -> None:
    with pytest.raises(UserError, match=message) as error:
        registry.validate(method, given)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("annotation", "value", "expected"),
    [
        ("Count", 3.0, 3),
        ("PositiveCount | None", None, None),
        ("dict[Literal['kl', 'mse'], float]", {"kl": 1}, {"kl": 1.0}),
        ("Coefficients", {"any": 2}, {"any": 2.0}),
        ("Weights", {"ja": 1}, {"ja": 1.0}),
        ("Literal['one']", "one", "one"),
    ],
)
def test_parameter_types_take(annotation: str, value: object, expected: object) -> None:
    found = parameters.resolve(annotation).check(value)
    assert found == expected and type(found) is type(expected)


@pytest.mark.parametrize(
    ("annotation", "value", "message"),
    [
        ("Count", 2.5, "not whole"),
        ("Count", -1, "out of range"),
        ("PositiveCount", 0, "out of range"),
        ("LearningRate", 0.0, "out of range"),
        ("NonNegative", -1e-9, "out of range"),
        ("dict[Literal['kl', 'mse'], float]", {"lk": 1}, "no term 'lk'"),
        ("Coefficients", {"kl": "much"}, "no number"),
        ("Coefficients", 3, "no mapping"),
    ],
)
def test_parameter_types_refuse(annotation: str, value: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parameters.resolve(annotation).check(value)


def test_a_new_file_is_a_new_method(house: Path) -> None:
    (house / "halfway.py").write_text(EXTRA)
    (house.parent / "sub").mkdir()
    (house.parent / "sub" / "method.py").write_text(EXTRA.replace("halfway", "other"))
    (house / "helper.py").write_text("VALUE = 1\n")
    described = registry.describe()
    assert list(described) == ["halfway", "other"]
    assert described["halfway"].module == "merges.methods.halfway"
    assert described["other"].module == "merges.sub.method"
    assert registry.validate("halfway", {}) == {"part": 0.5, "push": -1.0}


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('"""Go half of the way."""', "pass", "needs a title and a docstring"),
        ("part: Density", "part: Densty", r"unknown parameter type Densty \(did you mean"),
        ("part: Density = 0.5", "part: Density = 0", "part: default 0 is out of range"),
        ("part: Density = 0.5", "part: Density", "part needs a type annotation and a default"),
        ("part: Density = 0.5", "part=0.5", "part needs a type annotation and a default"),
        ("part: Density = 0.5", "part: Density = max(1, 0)", "must be a literal"),
        ('needs={"base"}', 'needs={"bass"}', r"unknown need 'bass' \(did you mean 'base'\?\)"),
        ("(base, experts, context,", "(base, context,", r"must be \(base, experts, context\)"),
        ("def halfway(", "def halfway(:", "correct the file"),
    ],
)
def test_a_malformed_method_is_told_by_file(house: Path, old: str, new: str, message: str) -> None:
    assert old in EXTRA
    (house / "halfway.py").write_text(EXTRA.replace(old, new))
    with pytest.raises(UserError, match=message) as error:
        registry.describe()
    assert str(house / "halfway.py") in str(error.value)


def test_siblings_share_a_file(house: Path) -> None:
    sibling = EXTRA[EXTRA.index("@method(") :].replace("halfway", "quarterway")
    (house / "halfway.py").write_text(EXTRA + sibling)
    described = registry.describe()
    assert list(described) == ["halfway", "quarterway"]
    assert {info.module for info in described.values()} == {"merges.methods.halfway"}
    assert described["quarterway"].parameters == described["halfway"].parameters


def test_two_methods_of_one_name_are_refused(house: Path) -> None:
    (house / "one.py").write_text(EXTRA)
    (house / "two.py").write_text(EXTRA)
    with pytest.raises(UserError, match="has a method halfway already"):
        registry.describe()


def test_a_methods_key_holds_the_engine_its_file_and_what_that_imports() -> None:
    linear, dare = (set(reachable(registry.sources(name))) for name in ("linear", "dare_ties"))
    engine = {f"merges/engine/{name}.py" for name in ("merger", "parameters", "pieces", "registry")}
    assert engine | {"merges/engine/run.py", "checkpoints/writing.py"} <= linear & dare
    # DARE-TIES takes the sign election from TIES' file, so that file counts for it too.
    assert dare - linear >= {
        *(f"merges/methods/{name}.py" for name in ("dare", "ties")),
        *(f"merges/arithmetic/{name}.py" for name in ("selection", "task_vectors")),
    }
    methods = {path for path in linear | dare if path.startswith("merges/methods/")}
    own = {f"merges/methods/{name}.py" for name in ("__init__", "linear", "dare", "ties")}
    assert methods == own
    assert not {"merges/cli.py", "common/progress.py"} & (linear | dare)


def test_at_least_forty_methods() -> None:
    assert len(registry.describe()) >= 40
