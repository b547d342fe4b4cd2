"""The rules of the house: import order, one lock, light parsing, speaking of itself alone."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests import test_prose

ROOT = Path(__file__).resolve().parents[2]
MAY_IMPORT = {
    "common": set(),
    "paper/hub": {"common"},
    "paper/calibration": {"common"},
    "checkpoints": {"common"},
    "bottle": {"common", "checkpoints"},
    "merges": {"common", "checkpoints"},
    "evaluation": {"common", "checkpoints"},
    "cask": {"common", "checkpoints", "bottle", "evaluation"},
    "search": {"common", "checkpoints", "merges", "evaluation"},
    "paper/rehearsal": {"common", "paper/hub", "evaluation"},
    "report": {"common"},
    "workflow/config": {"cask", "common", "paper/hub", "merges", "evaluation", "search"},
    "studies": {"bottle", "checkpoints", "common", "merges", "report", "workflow/config"},
    "workflow": {"common", "merges", "evaluation", "studies", "workflow/config"},
    "paper": {
        *("common", "paper/hub", "paper/calibration", "paper/rehearsal", "cask"),
        *("evaluation", "merges", "workflow", "workflow/config"),
    },
}
HEAVY = {"torch", "transformers", "lm_eval", "datasets", "pandas", "matplotlib", "cmaes"}


def tracked():
    return [ROOT / name for name in test_prose.tracked()]


def room_of(module):
    top, _, rest = module.partition(".")
    inner = f"{top}/{rest.split('.')[0]}"
    return inner if inner in MAY_IMPORT else top


@pytest.mark.parametrize("package", sorted(MAY_IMPORT))
def test_imports_follow_the_way_of_the_data(package):
    inner = {other for other in MAY_IMPORT if other.startswith(f"{package}/")}
    sources = [
        path
        for path in (ROOT / package).rglob("*.py")
        if not any((ROOT / other) in path.parents for other in inner)
    ]
    assert sources
    for path in sources:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            modules = []
            if isinstance(node, ast.Import):
                modules = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                modules = [node.module or ""]
            for module in modules:
                room = room_of(module)
                allowed = MAY_IMPORT[package] | {package}
                assert room not in MAY_IMPORT or room in allowed, f"{path} imports {module}"


def imports_of(path, modules):
    """The project's own modules that a file imports: at its top, in functions, or for types."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                found.add(inner if inner in modules else node.module)
    return found & modules


def circles(graph):
    """The sets of nodes that reach each other, found by taking away what is at an end."""
    left = {node: set(targets) - {node} for node, targets in graph.items()}
    while ends := [n for n, to in left.items() if not to] or [
        n for n in left if not any(n in to for to in left.values())
    ]:
        left = {n: to - set(ends) for n, to in left.items() if n not in ends}
    return left


def test_circles_are_found():
    assert circles({"a": {"b"}, "b": {"c"}, "c": set(), "d": {"a", "c"}}) == {}
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"b"}, "d": {"c"}}) == {"b": {"c"}, "c": {"b"}}


def test_no_files_import_each_other_in_a_circle():
    files = {}
    for path in tracked():
        parts = path.relative_to(ROOT).with_suffix("").parts
        if path.suffix == ".py" and parts[0] != "tests":
            files[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    assert "merges.engine.run" in files
    graph = {module: imports_of(path, set(files)) for module, path in files.items()}
    assert "merges.engine.streaming" in graph["merges.engine.run"]
    assert circles(graph) == {}


def test_every_package_is_a_command_that_starts_light():
    for package in sorted({name.partition("/")[0] for name in MAY_IMPORT} - {"common"}):
        code = (
            f"import sys, runpy; sys.argv = ['{package}', '--help']\n"
            f"try: runpy.run_module('{package}', run_name='__main__')\n"
            f"except SystemExit as end: assert not end.code, end.code\n"
            f"print(sorted({HEAVY!r} & set(sys.modules)))"
        )
        done = subprocess.run(
            [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        assert done.stdout.rstrip().endswith("[]"), f"{package}: {done.stdout[-300:]}"
        assert "examples" in done.stdout.lower(), f"{package} --help shows no example"


def test_collecting_tests_loads_no_heavy_library_but_torch(loaded_by_collecting):
    # Sixty files of tests compute with torch; it takes 3 of the 8 CPU s of collecting all tests.
    heavy = (HEAVY | {"numba", "scipy", "sklearn", "snakemake"}) - {"torch"}
    assert "pytest" in loaded_by_collecting
    assert not heavy & loaded_by_collecting, "import it in the test or in a fixture"


def test_environment_yml_installs_the_lock_and_only_that():
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    python, pip, packages = environment["dependencies"]
    assert (python, pip) == ("python=3.11", "pip")
    assert packages == {"pip": ["--requirement requirements.lock"]}


def test_the_lock_pins_everything_and_leaves_torch_its_builds():
    lines = (ROOT / "requirements.lock").read_text().splitlines()
    pins = [line for line in lines if not line.startswith("#")]
    assert "torch==2.13.0" in pins
    for pin in pins:
        assert re.fullmatch(r"[A-Za-z0-9_.-]+==[A-Za-z0-9_.]+", pin), pin
    names = [re.sub(r"[-_.]+", "-", pin.split("==")[0]).lower() for pin in pins]
    assert len(names) == len(set(names))


def test_the_installed_versions_are_the_locked_ones():
    import importlib.metadata

    for line in (ROOT / "requirements.lock").read_text().splitlines():
        if not line.startswith("#"):
            name, version = line.split("==")
            assert importlib.metadata.version(name).split("+")[0] == version, name


def test_no_file_is_long_or_speaks_of_a_machine():
    machine = re.compile(
        r"/(?:work|root|tmp/spec)\b|pypi\.org|files\.pythonhosted|deb\.debian\.org"
    )
    for path in tracked():
        if path.suffix in (".py", ".smk", ".md", ".yaml", ".yml") or path.name == "Makefile":
            text = path.read_text(encoding="utf-8")
            if path != Path(__file__):
                assert not machine.search(text), f"{path}: {machine.search(text)[0]}"
            if path.suffix in (".py", ".smk"):
                assert text.count("\n") <= 420, f"{path} has {text.count(chr(10))} lines"


def long_without_a_reason(source):
    """The functions of over 30 lines, docstring aside, that no comment explains."""
    lines = source.splitlines()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            own = lines[node.lineno - 1 : node.end_lineno]
            documented = (ast.get_docstring(node, clean=False) or "").count("\n") + 1
            if len(own) - documented > 30 and not any(re.search(r"(^|\s)# ", ln) for ln in own):
                yield node.name


def test_a_long_function_is_found():
    body = "    x = 1\n" * 30
    assert list(long_without_a_reason(f"def f():\n{body}    return x\n")) == ["f"]
    assert not list(long_without_a_reason(f"def f():\n{body}"))
    assert not list(long_without_a_reason(f"def f():\n    # why\n{body}    return x\n"))


def test_a_long_function_has_a_comment():
    for path in tracked():
        if path.suffix == ".py" and path.relative_to(ROOT).parts[0] != "tests":
            found = list(long_without_a_reason(path.read_text(encoding="utf-8")))
            assert not found, f"{path}: {found}: say why in a comment, or make it shorter"


def test_no_tracked_file_is_large():
    for path in tracked():
        assert path.stat().st_size < 2_000_000, path


def test_no_file_of_the_project_names_a_folder_of_one_machine():
    # Documents and code may name the system's (/usr/lib, /tmp, /dev), but no one's own.
    own = re.compile(r"""(?:^|[\s"'`(=:,])/(?:home|root|work|Users)/[\w.-]+""")
    for path in tracked():
        if path.suffix in (".png", ".pdf") or path.relative_to(ROOT).parts[0] == "tests":
            continue
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
            found = own.search(line)
            assert not found, f"{path}:{number}: {found[0].strip()}: a folder of one machine"


def test_colours_are_written_in_two_places():
    # Figures take theirs from report/palette.py, the page from report/templates/page.css.
    colour = re.compile(r"#[0-9A-Fa-f]{6}\b")
    places = {"report/palette.py", "report/templates/page.css"}
    held = {
        str(path.relative_to(ROOT))
        for path in tracked()
        if path.suffix in (".py", ".css", ".js", ".j2")
        and path.relative_to(ROOT).parts[0] != "tests"
        and colour.search(path.read_text(encoding="utf-8"))
    }
    assert held == places
