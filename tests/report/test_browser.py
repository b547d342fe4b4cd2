"""The page in a real browser: no error, sorting, filtering, origins, answers, links, widths."""

from __future__ import annotations

import json
import re
import zlib
from pathlib import Path

import pytest

from common.calling import call
from common.files import read_jsonl
from tests.report.browser import CHROMIUM, Browser
from tests.report.conftest import SMALL, fill, write

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed (Debian: chromium)"),
]
WIDTHS = (390, 1024, 1400, 1600)
HARD = [
    "A long label " * 16,
    "日本語の長いラベル" * 6,
    "$x_1$ & 100 % {a} #~^\\",
    "<b>bold</b> \"'so'\"",
]
# What reaches over the window's edge or its own box, unless that is what scrolls.
_CUT = """[...document.querySelectorAll('body *')].filter(node => {
  const box = node.getBoundingClientRect();
  return box.width && box.right > innerWidth + 1 && !node.closest('nav, .scroll, .plot, dialog');
}).map(node => node.outerHTML.slice(0, 90))"""
# Pairs of texts of a figure that lie over each other.
_OVER = """[...document.querySelectorAll('figure svg[role=img]')].flatMap(svg => {
  const texts = [...svg.querySelectorAll('text')].map(node => [node, node.getBoundingClientRect()]);
  return texts.flatMap(([one, a], place) => texts.slice(place + 1).filter(([, b]) =>
    a.left < b.right - 1 && b.left < a.right - 1 && a.top < b.bottom - 3 && b.top < a.bottom - 3
  ).map(([two]) => `${one.textContent} / ${two.textContent}`));
})"""
# Texts of a figure that its edge cuts.
_OUTSIDE = """[...document.querySelectorAll('figure svg[role=img]')].flatMap(svg => {
  const edge = svg.getBoundingClientRect();
  return [...svg.querySelectorAll('text')].filter(node => {
    const box = node.getBoundingClientRect();
    return box.left < edge.left - 1 || box.right > edge.right + 1;
  }).map(node => node.textContent);
})"""


@pytest.fixture(scope="module")
def made(finished, full, tmp_path_factory) -> dict[str, Path]:
    """Pages: `tiny` of real answers, `full` of the default configuration, and `hard` labels."""
    from evaluation.items import write_records  # heavy

    pages = {"tiny": finished / "report.html"}
    rows = read_jsonl(finished / "case1/data/test/bottle_ja8/mgsm.jsonl")
    asked = [row | {"before": "Solved: 1+1=2\n", "until": ["\n"], "max_tokens": 5} for row in rows]
    write_records(finished / "case1/prompts/bottle_ja8/mgsm.jsonl.gz", asked)
    given = ["--config", str(finished / "config.json"), "--results", str(finished)]
    given += ["--items", str(finished / "items"), "--out", str(pages["tiny"])]
    assert call("report.cli", ["page", *given]) == 0
    pages["full"] = tmp_path_factory.mktemp("page") / "report.html"
    given = ["--config", str(full[0]), "--results", str(full[1])]
    assert call("report.cli", ["page", *given, "--out", str(pages["full"])]) == 0
    top = tmp_path_factory.mktemp("hard")
    config = json.loads(json.dumps(SMALL))
    for row, label in zip(config["methods"].values(), HARD, strict=True):
        row["label"] = label
    config["cases"]["case1"]["title"] = f"Fall $1$ & <i>{HARD[1]}</i>"
    fill(top / "results", config)
    write(top / "config.json", config)
    pages["hard"] = top / "report.html"
    given = ["--config", str(top / "config.json"), "--results", str(top / "results")]
    assert call("report.cli", ["page", *given, "--out", str(pages["hard"])]) == 0
    return pages


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    found = Browser(tmp_path_factory.mktemp("browser"))
    yield found
    found.close()


def choose(browser: Browser, name: str, value: str) -> None:
    """Choose an entry of one of the lists above the answers."""
    browser.run(f"box.{name}.value = {value!r}, box.{name}.dispatchEvent(new Event('change'))")


@pytest.fixture(autouse=True)
def no_errors(browser):
    """No test may leave an error in the console."""
    browser.errors.clear()
    yield
    assert browser.errors == []


@pytest.mark.parametrize("page", ["full", "hard"])
@pytest.mark.parametrize("width", WIDTHS)
def test_nothing_is_cut_and_no_labels_overlap(browser, made, width, page):
    browser.open(made[page], width)
    assert browser.run("document.documentElement.scrollWidth <= innerWidth")
    assert browser.run(_CUT) == []
    assert browser.run(_OUTSIDE) == []
    assert browser.run(_OVER) == []
    # No column of the claims has to be scrolled to.
    assert browser.run(
        "(boxes => boxes.length > 0 && boxes.every(box => box.scrollWidth <= box.clientWidth + 1))"
        "([...document.querySelectorAll('.first .scroll')])"
    )
    # Some score of Table 1 is in view next to its row's label.
    assert browser.run(
        "document.querySelector('#table1 td.cell').getBoundingClientRect().right < innerWidth"
    )


def test_a_table_sorts_by_mouse_and_keyboard_and_back(browser, made):
    browser.open(made["full"])
    column = (
        "[...document.querySelectorAll('#table1 tbody tr')].map(row => row.cells[11].textContent)"
    )
    before = browser.run(column)
    numbers = sorted((float(text.split()[0]) for text in before), reverse=True)
    button = "document.querySelectorAll('#table1 thead button')[11]"
    browser.run(f"{button}.click()")
    assert [float(text.split()[0]) for text in browser.run(column)] == numbers
    assert browser.run(f"{button}.closest('th').getAttribute('aria-sort')") == "descending"
    browser.run(f"{button}.focus()")
    browser.press("Enter")
    assert [float(text.split()[0]) for text in browser.run(column)] == numbers[::-1]
    browser.press("Enter")
    assert browser.run(column) == before


def test_a_filter_shows_the_rows_with_its_words_and_counts_them(browser, made):
    browser.open(made["full"])
    browser.run(
        "(() => { const box = document.querySelector('#table1 input'); box.value = 'dare';"
        " box.dispatchEvent(new Event('input')); })()"
    )
    shown = browser.run(
        "[...document.querySelectorAll('#table1 tbody tr')].filter(row => row.offsetHeight)"
        ".map(row => row.cells[0].textContent)"
    )
    assert shown == ["DARE-TIES", "DARE-TIES (tuned)"]
    assert browser.run("document.querySelector('#table1 [role=status]').textContent").startswith(
        "2 of "
    )


def test_a_header_and_the_first_column_stay_in_view(browser, made):
    browser.open(made["full"], 390, 500)
    browser.run("document.querySelector('#table1 .scroll').scrollTo(200, 150)")
    place = "document.querySelector('#table1 {}').getBoundingClientRect().{}"
    left, top = (
        browser.run(f"{place.format(f'{part} th', side)} - {place.format('.scroll', side)}")
        for part, side in (("tbody", "left"), ("thead", "top"))
    )
    assert abs(left) < 1 and abs(top) < 1


def test_sections_and_averages_are_always_in_view_on_a_phone(browser, made):
    browser.open(made["full"], 390, 700)
    browser.run("document.querySelector('nav a[href=\"#why-a-merge-works-section\"]').click()")
    browser.wait("scrollY > 2000")
    place = "document.{}.getBoundingClientRect()"
    nav = place.format("querySelector('nav')")
    assert browser.run(f"{nav}.top") == 0
    title = place.format("getElementById('why-a-merge-works-section')")
    assert browser.run(f"{nav}.bottom <= {title}.top && {title}.bottom < 300")
    box, average = (
        place.format("querySelector('#table1 .scroll')"),
        "querySelector('#table1 td.avg')",
    )
    assert browser.run(f"{place.format(average)}.right <= {box}.right + 1")
    text = browser.run(f"document.{average}.textContent")
    browser.run("document.querySelector('#table1 .scroll').scrollTo(150, 0)")
    assert browser.run(f"{place.format(average)}.right <= {box}.right + 1")
    assert re.fullmatch(r"\.\d{3}", text)  # random choice has no error


def test_losses_on_lines_are_drawn_for_every_merge(browser, made):
    browser.open(made["full"], 390)
    found = browser.run(
        "[...document.querySelectorAll('#figure-table1_lines .panels > div')].map(panel => ["
        "panel.querySelector('b').title, panel.querySelectorAll('.way').length,"
        " panel.getBoundingClientRect().width])"
    )
    rows = browser.run(
        "[...document.querySelectorAll('#table1_inspection tbody th')].map(row => row.textContent)"
    )
    assert [name for name, _, _ in found] == rows and len(rows) > 10
    assert {ways for _, ways, _ in found} == {3}
    assert all(160 < width < 190 for *_, width in found)  # two next to each other


def test_a_score_opens_its_origin_by_keyboard(browser, made):
    browser.open(made["tiny"])
    browser.run("document.querySelector('#table1 [data-line=soup] td.cell').focus()")
    browser.press("ArrowRight")
    browser.press("Enter")
    assert browser.run("document.getElementById('origin').open")
    text = browser.run("document.getElementById('origin').textContent")
    assert "Model Soups, Pair" in text and "bottle_ja8/marc" in text
    assert "--suites bottle_ja8/marc,bottle_ja8/mgsm" in text
    assert "Command:python -m merges --method linear" in text
    links = browser.run(
        "[...document.querySelectorAll('#origin a')].map(a => a.getAttribute('href'))"
    )
    assert links and all((made["tiny"].parent / link).exists() for link in links)
    browser.press("Escape")
    assert not browser.run("document.getElementById('origin').open")


def test_answers_of_two_models_are_those_in_the_files(browser, made, finished):
    browser.open(made["tiny"])
    browser.run("document.querySelector('#table1 [data-line=soup] td.cell').click()")
    browser.run("document.querySelector('#origin td button').click()")
    choose(browser, "first", "case1/scores/test/ja.json")
    choose(browser, "filter", "all items")
    browser.wait("document.querySelectorAll('.item').length === 8")
    records = {}
    for id in ("soup", "ja"):
        packed = (finished / f"case1/scores/test/{id}.items.jsonl.gz").read_bytes()
        lines = zlib.decompress(packed, 31).decode().splitlines()
        found = [
            record for record in map(json.loads, lines) if record["task"] == "bottle_ja8/jcomqa"
        ]
        records[id] = {record["id"]: record for record in found}
    rows = read_jsonl(finished / "case1/data/test/bottle_ja8/jcomqa.jsonl")
    texts = browser.run("[...document.querySelectorAll('.item')].map(item => item.innerText)")
    by_id = {row["id"]: row for row in rows}
    for text in texts:
        row = by_id[text.split()[0]]
        assert row["prompt"] in text
        # A line for each choice: its text, and what both models think of it.
        lines = [line for line in text.splitlines() if "\t" in line]
        labels = (("Japanese expert", "ja"), ("Model Soups", "soup"))
        said = [
            f"{label}: {'right' if records[id][row['id']]['score'] > 0.5 else 'wrong'}"
            for label, id in labels
        ]
        assert lines[0].split("\t") == ["Choice", *said]
        for place, choice in enumerate(row["choices"]):
            shown = [choice + " gold" * (place == row["gold"])]
            for _, id in labels:
                record = records[id][row["id"]]
                answer = " answer" * (place == record["answer"])
                shown.append(f"{record['loglikelihoods'][place]:.2f}{answer}")
            assert lines[1 + place].strip().split("\t") == [part.strip() for part in shown]
    wanted = sum(
        records["ja"][id]["score"] > 0.5 >= record["score"]
        for id, record in records["soup"].items()
    )
    choose(browser, "filter", "first right, second wrong")
    browser.wait(f"box.count.textContent === '{wanted} of 8 items'")
    assert browser.run("document.querySelectorAll('.item').length") == wanted
    browser.run("document.querySelector('#items .tools button').click()")  # all models
    browser.wait("document.querySelectorAll('#items canvas').length === 4")


def test_a_prompt_is_shown_as_it_was_asked(browser, made, finished):
    browser.open(made["tiny"])
    browser.run("browse('case1/scores/test/soup.json', 'bottle_ja8/mgsm')")
    choose(browser, "filter", "all items")
    browser.wait("document.querySelectorAll('.item').length === 8")
    rows = read_jsonl(finished / "case1/data/test/bottle_ja8/mgsm.jsonl")
    text = browser.run("document.querySelector('.item').innerText")
    assert rows[0]["prompt"] in text and f"Gold: {rows[0]['target'].strip()}" in text
    assert "Solved: 1+1=2" not in text  # folded
    assert 'An answer is read up to "\\n", at most 5 tokens.' in text
    browser.run("document.querySelector('.item summary').click()")
    assert "Solved: 1+1=2" in browser.run("document.querySelector('.item').innerText")


def test_a_script_that_is_gone_is_named(browser, made, finished):
    script = finished / "items/case1/scores/test/math_a.js"
    kept = script.read_bytes()
    script.unlink()
    try:
        browser.open(made["tiny"])
        browser.run("document.querySelector('#table1 [data-line=math_a] td.cell').click()")
        browser.run("document.querySelector('#origin td button').click()")
        browser.wait("box.count.textContent.includes('math_a.js is not there')")
        browser.errors.clear()  # the browser's own line on the missing file
    finally:
        script.write_bytes(kept)


def test_every_link_leads_somewhere(browser, made):
    for path in made.values():
        browser.open(path)
        links = browser.run("[...document.querySelectorAll('a')].map(a => a.getAttribute('href'))")
        ids = set(browser.run("[...document.querySelectorAll('[id]')].map(node => node.id)"))
        assert links
        for link in links:
            assert link[1:] in ids if link.startswith("#") else (path.parent / link).exists(), link


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_texts_have_the_contrast_of_aa(browser, made, scheme):
    media = [{"name": "prefers-color-scheme", "value": scheme}]
    browser.send("Emulation.setEmulatedMedia", features=media)
    browser.open(made["full"])
    found = browser.run("""[...document.querySelectorAll('p, td, th, a, .e, figcaption, button')]
      .filter(node => node.offsetHeight).map(node => {
        let below = node;
        const back = () => getComputedStyle(below).backgroundColor;
        while (back() === 'rgba(0, 0, 0, 0)' && below.parentElement) below = below.parentElement;
        return getComputedStyle(node).color + ' ' + back();
      })""")
    browser.send("Emulation.setEmulatedMedia", features=[])

    def light(colour: tuple[int, ...]) -> float:
        parts = [c / 255 / 12.92 if c <= 10 else ((c / 255 + 0.055) / 1.055) ** 2.4 for c in colour]
        return 0.2126 * parts[0] + 0.7152 * parts[1] + 0.0722 * parts[2]

    pairs = {tuple(map(int, re.findall(r"\d+", text)[:6])) for text in found}
    assert len(pairs) > 3
    for pair in pairs:
        low, high = sorted((light(pair[:3]), light(pair[3:])))
        assert (high + 0.05) / (low + 0.05) >= 4.5, pair


def test_nothing_is_cut_on_paper(browser, made):
    browser.open(made["full"], 1045)  # the width of A4, landscape, without its margins
    browser.send("Emulation.setEmulatedMedia", media="print")
    try:
        # Claims have a column for each kept experiment: three more have room, too.
        browser.run(
            "document.querySelectorAll('table.stack tr').forEach(row =>"
            " [1, 2, 3].forEach(() => row.append(row.lastElementChild.cloneNode(true))))"
        )
        assert browser.run("document.documentElement.scrollWidth <= innerWidth")
        wide = browser.run(
            "[...document.querySelectorAll('.scroll, .plot, table')].filter(node =>"
            " node.offsetHeight && node.getBoundingClientRect().right > innerWidth + 1).length"
        )
        assert wide == 0
    finally:
        browser.send("Emulation.setEmulatedMedia", media="")
    assert browser.printed().startswith(b"%PDF")
