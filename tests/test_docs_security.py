"""The page on security: its tests exist, its functions and numbers are those of the code."""

import ast
import re

from evaluation.sql import functions, sqlite
from tests.test_prose import tracked
from tests.workflow.test_house import ROOT

PAGE = (ROOT / "docs/security.md").read_text(encoding="utf-8")


def names_of_tests():
    for name in tracked():
        if not (name.startswith("tests/") and name.endswith(".py")):
            continue
        tree = ast.parse((ROOT / name).read_text(encoding="utf-8"))
        yield from (node.name for node in tree.body if isinstance(node, ast.FunctionDef))


def rows(title):
    """The cells of the rows of the first table below a heading."""
    table = PAGE.split(f"# {title}\n", 1)[1].split("\n|---", 1)[1].split("\n\n", 1)[0]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in table.split("\n")[1:]]


def test_every_test_that_the_page_names_exists():
    named = set(re.findall(r"`(test_\w+)`", PAGE))
    assert len(named) > 40
    assert not named - set(names_of_tests())


def test_every_attack_has_a_test():
    for title in ("What never runs", "What a checkpoint may claim", "Attacks, in words"):
        assert rows(title)
        for *_, tests in rows(title):
            assert re.fullmatch(r"(`test_\w+`(, )?)+", tests)


def test_the_page_lists_the_functions_of_the_code():
    on_page = {
        frozenset(re.findall(r"`(\w+)`", names)) for names, *_ in rows("Functions") if "`" in names
    }
    replaced = {name for name, _ in functions.METERED}
    formats = {"printf", "format"}
    groups = [*functions.REFUSED.values(), replaced & formats, replaced - formats]
    assert on_page == set(map(frozenset, groups))
    plain = len(functions.PLAIN - replaced)
    assert f"| {plain} others of SQLite 3.40 |" in PAGE


def test_the_page_has_the_limits_of_the_code():
    from evaluation.sql import sql_eval  # loads pandas

    found = {name: cells for name, *cells in rows("Bounds on SQL")}
    for column, limits in enumerate((sqlite.Limits(), sql_eval.SQLITE_LIMITS)):
        expected = {
            "work": f"{limits.steps // 1_000_000} million steps",
            "time": f"{limits.seconds:.0f} s",
            "memory": f"{limits.heap // 1_000_000} MB heap",
            "one string or blob, one row": f"{limits.bytes:,} bytes",
            "rows": f"{limits.rows:,}",
            "statement": f"{limits.statement:,}",
            "depth of an expression": str(limits.depth),
            "terms of a compound SELECT": str(limits.compound),
        }
        for name, value in expected.items():
            assert found[name][column].removesuffix(" characters") == value
    assert found["values that are compared"][1] == f"{sql_eval.MAX_CELLS:,}"
    assert found["answer of the model"][1] == f"{sql_eval.MAX_ANSWER:,} characters"
