"""The index of docs: its picture and table of packages, its links."""

import re
import subprocess

import pytest

from tests.workflow.test_house import MAY_IMPORT, ROOT

INDEX = (ROOT / "docs/README.md").read_text(encoding="utf-8")


def reached(package, seen=frozenset()):
    """All packages that a package may import, directly or through others."""
    found = set()
    for other in MAY_IMPORT[package] - seen:
        found |= {other} | reached(other, seen | {package})
    return found


def arrows():
    """The permitted imports that do not follow from others, as lines of a Mermaid graph."""
    for package, others in MAY_IMPORT.items():
        for other in sorted(others):
            rest = others - {other}
            if not any(other in reached(between, frozenset({package})) for between in rest):
                yield f"  {package} --> {other}"


def test_the_picture_of_the_packages_is_that_of_the_permitted_imports():
    drawn = re.search(r"```mermaid\ngraph TB\n(.*?)```", INDEX, re.DOTALL)[1].splitlines()
    assert drawn == list(arrows()), "the picture should be\n" + "\n".join(arrows())


def test_the_table_of_packages_says_what_each_may_import():
    rows = re.findall(r"^\| `([a-z/]+)/` \| [^|]+ \| ([^|]+) \|$", INDEX, re.MULTILINE)
    found = {name: set(re.findall(r"[a-z/]+[a-z]", others)) - {"none"} for name, others in rows}
    assert found == MAY_IMPORT


def pages():
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "*.md"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    return [name for name in listed.stdout.splitlines() if (ROOT / name).is_file()]


def anchors(text):
    """Names of a page's headings as hosting pages make them."""
    headings = re.findall(r"^#+ (.*)$", re.sub(r"```.*?```", "", text, flags=re.DOTALL), re.M)
    plain = (re.sub(r"[^\w\- ]", "", heading.lower()) for heading in headings)
    return {heading.replace(" ", "-") for heading in plain}


@pytest.mark.parametrize("page", pages())
def test_every_link_of_a_page_leads_somewhere(page):
    path = ROOT / page
    text = re.sub(r"```.*?```|`[^`\n]*`", "", path.read_text(encoding="utf-8"), flags=re.DOTALL)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"[a-z]+:", target):
            continue
        name, _, anchor = target.partition("#")
        found = (path.parent / name).resolve() if name else path
        assert found.exists(), f"{page}: {target}"
        if anchor:
            assert anchor in anchors(found.read_text(encoding="utf-8")), f"{page}: {target}"
