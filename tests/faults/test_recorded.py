"""Files that differ from their manifest: refused by name by whatever opens them, until accepted.

Every kind of file that the suite writes and reads again, and every way to damage it that its own
format might not notice.
"""

from __future__ import annotations

import gzip
import json
import shutil
from pathlib import Path

import pytest

from common.errors import UserError
from common.manifest import ACCEPT, accept, check_recorded, write_manifest

SUITE = "bottle_gsm_en"
EXPERTS = ("ja", "math_a")


def run(package, *arguments):
    import importlib

    assert not importlib.import_module(f"{package}.cli").main([str(word) for word in arguments])


def write_models(top):
    """Give the tiny family's folders manifests, as trained models have them."""
    for name in ("base", *EXPERTS):
        outputs = {path.name: path for path in (top / name).iterdir()}
        write_manifest(top / name / "manifest.json", kind="expert", parameters={}, outputs=outputs)


def parents(top):
    experts = [f"{name}={top / name}" for name in EXPERTS]
    return ["--base", top / "base", "--experts", *experts]


def calibration(top):
    return ["--calibration", *[f"{n}={top / 'data/calibration' / n}.jsonl" for n in EXPERTS]]


def scored(top, model="base", split="test", out="again"):
    arguments = ["--model", top / model, "--suites", SUITE, "--data", top / "data"]
    run("evaluation", *arguments, "--split", split, "--out", top / f"{out}.json")


def merged(top):
    run("merges", "--method", "linear", *parents(top), "--out", top / "again")


def taught(top):
    settings = ["--set", "samples=2", "--teachers", top / "teachers"]
    run("merges", "--method", "dam", *parents(top), *calibration(top), *settings,
        "--out", top / "again")  # fmt: skip


def smoked(top):
    run("checkpoints", "smoke", "--model", top / "soup", "--out", top / "again.json")


def gated(top):
    run("evaluation", "gate", "--base", top / "dev/base.json", "--go-on", "--expert",
        f"ja={top / 'dev/ja.json'}:{SUITE}/gsm_en", "--out", top / "again.json")  # fmt: skip


def worlds_gated(top):
    run("evaluation", "gate", "--worlds", top / "case1/gate.json", "--out", top / "again.json")


def trained(top):
    run("bottle", "train", "--case", "case1", "--role", "base", "--data", top / "data",
        "--steps", 1, "--hidden-size", 32, "--out", top / "again")  # fmt: skip


def tuned(top):
    candidates = ["--candidates", '[{"scale": 1.0}]', "--method", "task_arithmetic"]
    run("search", "tune", *parents(top), *candidates, "--data", top / "data", "--suites", SUITE,
        "--out", top / "again")  # fmt: skip


def reported(top):
    from report.load import load_case

    for line in load_case(json.loads((top / "config.json").read_text()), top, "case1").faults:
        raise UserError(line)  # the report says it and makes the rest


def illustrated(top):
    check_recorded(top / "figures/averages.png")  # as the page does before it links one


def paired(top):
    from studies.dam.load import read_items

    read_items(top / "case1/scores/test/base.items.jsonl.gz")


CONFIG = {
    "name": "small",
    "seed": 0,
    "methods": {"soup": {"label": "Soup", "method": "linear"}},
    "cases": {"case1": {
        "table": "table1", "title": "T", "columns": [{"label": "A", "tasks": [f"{SUITE}/gsm_en"]}],
        "experts": {"ja": {"label": "J", "domain": [f"{SUITE}/gsm_en"]}},
    }},
}  # fmt: skip


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """One of everything that has a manifest; each test changes a copy."""
    top = tmp_path_factory.mktemp("whole")
    run("bottle", "tiny", top)
    write_models(top)
    run("merges", "--method", "linear", *parents(top), "--out", top / "soup")
    run("merges", "teachers", *parents(top), *calibration(top), "--out", top / "teachers")
    for name in ("base", "ja"):
        scored(top, name, "dev", f"dev/{name}")
        scored(top, name, "test", f"case1/scores/test/{name}")
    scored(top, "soup", "test", "case1/scores/test/soup")
    run("evaluation", "gate", "--base", top / "dev/base.json", "--go-on", "--expert",
        f"ja={top / 'dev/ja.json'}:{SUITE}/gsm_en", "--out", top / "case1/gate.json")  # fmt: skip
    parents_ = [f"{name}={top / name}" for name in ("ja", "soup")]
    smoke = ["smoke", "--model", top / "base", "--parent", *parents_]
    run("checkpoints", *smoke, "--out", top / "case1/smoke.json")
    (top / "figures").mkdir()
    (top / "figures/averages.png").write_bytes(bytes(range(256)))
    outputs = {"averages.png": top / "figures/averages.png"}
    write_manifest(top / "figures/manifest.json", kind="figures", parameters={}, outputs=outputs)
    (top / "config.json").write_text(json.dumps(CONFIG))
    return top


@pytest.fixture
def top(whole, tmp_path):
    return shutil.copytree(whole, tmp_path, dirs_exist_ok=True)


def bit(path):
    """Flip one bit in the middle: a value of weights, a letter of a text."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def last_bit(path):
    content = bytearray(path.read_bytes())
    content[-2] ^= 1
    path.write_bytes(content)


def cut(path):
    path.write_bytes(path.read_bytes()[:-40])


def gone(path):
    path.unlink()


def digit(path):
    """Change the first digit of a text."""
    text = path.read_text()
    at = next(n for n, letter in enumerate(text) if letter in "123456789")
    path.write_text(text[:at] + str((int(text[at]) + 1) % 10) + text[at + 1 :])


def doubled(path):
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join([*lines, lines[0]]))


def dropped(path):
    path.write_text("".join(path.read_text().splitlines(keepends=True)[1:]))


def swapped(path):
    """Put another expert's file, sound in itself, in the place of this one."""
    other = {"ja": "math_a", "base": "ja", "soup": "ja"}
    parts = list(path.parts)
    at = next(n for n, part in enumerate(parts) if part.split(".")[0] in other)
    head, dot, rest = parts[at].partition(".")
    parts[at] = other[head] + dot + rest
    shutil.copy(Path(*parts), path)


def raised(path):
    """Edit every score of a file."""
    record = json.loads(path.read_text())
    for entry in record["tasks"].values():
        entry["value"] = 0.987
    path.write_text(json.dumps(record))


def forged(path):
    """Edit an answer inside a valid gzip."""
    lines = gzip.decompress(path.read_bytes()).decode().splitlines()
    changed = [json.dumps(json.loads(line) | {"score": 1.0}) for line in lines]
    path.write_bytes(gzip.compress("\n".join(changed).encode()))


TEXT, BYTES, ROWS = (digit, bit, cut, gone), (bit, last_bit, cut, gone), (digit, doubled, dropped)
SCORES = "case1/scores/test"
CASES = [
    ("base/model.safetensors", (*BYTES, swapped), (scored, merged, taught)),
    ("ja/model.safetensors", (bit, swapped), (merged, taught, tuned)),
    ("soup/model.safetensors", (bit, swapped, cut), (smoked,)),
    ("base/config.json", TEXT, (scored, merged, tuned)),
    ("soup/config.json", TEXT, (smoked,)),
    ("base/tokenizer.json", (bit, cut, gone), (scored, merged)),
    (f"data/dev/{SUITE}/gsm_en.jsonl", ROWS, (tuned,)),
    (f"data/test/{SUITE}/gsm_en.jsonl", (*ROWS, bit), (scored,)),
    ("data/calibration/ja.jsonl", ROWS, (taught,)),
    ("data/train/base.jsonl", ROWS, (trained,)),
    ("data/tokenizer/tokenizer.json", (bit,), (trained,)),
    ("teachers/ja.safetensors", (*BYTES, swapped), (taught,)),
    ("dev/ja.json", (raised, digit), (gated,)),
    (f"{SCORES}/soup.json", (raised, digit, swapped), (reported,)),
    (f"{SCORES}/base.json", (raised, swapped), (reported,)),
    (f"{SCORES}/base.items.jsonl.gz", (forged, bit, swapped), (paired,)),
    ("case1/smoke.json", (digit,), (reported,)),
    ("case1/gate.json", (digit,), (reported, worlds_gated)),
    ("figures/averages.png", (cut, bit), (illustrated,)),
]
EVERY = [
    pytest.param(file, damage, use, id=f"{file}-{damage.__name__}-{use.__name__}")
    for file, damages, uses in CASES
    for damage in damages
    for use in uses
]


@pytest.mark.parametrize(("file", "damage", "use"), EVERY)
def test_a_file_unlike_its_manifest_is_refused_by_name(top, file, damage, use):
    damage(top / file)
    with pytest.raises(UserError) as refused:
        use(top)
    message = str(refused.value)
    place = top / file
    named = str(place) if damage is not gone else str(place.parent)
    assert named in message and place.name in message and "\n" not in message
    assert ACCEPT in message or damage is gone
    assert not list(top.glob("again*"))


USES = {use.__name__: use for _, _, uses in CASES for use in uses if use is not worlds_gated}


@pytest.mark.parametrize("use", USES.values(), ids=USES)
def test_nothing_is_refused_that_is_as_it_was_made(top, use):
    use(top)


@pytest.mark.parametrize(
    ("file", "damage", "use"),
    [
        ("base/model.safetensors", bit, scored),
        ("base/config.json", lambda path: path.write_text(path.read_text() + "\n"), merged),
        (f"data/test/{SUITE}/gsm_en.jsonl", doubled, scored),
        ("data/calibration/ja.jsonl", dropped, taught),
        ("dev/ja.json", raised, gated),
        (f"{SCORES}/soup.json", raised, reported),
        ("case1/gate.json", digit, reported),
    ],
)
def test_what_the_message_names_accepts_the_change_and_says_so(top, file, damage, use, capsys):
    damage(top / file)
    with pytest.raises(UserError) as refused:
        use(top)
    *_, command = str(refused.value).partition(f"{ACCEPT} ")
    run("checkpoints", "accept", command)
    assert str(top / file) in capsys.readouterr().out
    if use is taught:
        with pytest.raises(UserError, match="other data than"):  # the teachers' are the old rows
            use(top)
    else:
        use(top)
    assert accept(command) == []
    manifests = top.rglob("*manifest.json")
    kept = [json.loads(path.read_text()).get("extra", {}).get("accepted") for path in manifests]
    assert len([found for found in kept if found]) == 1


def test_any_bit_of_a_training_state_is_noticed(tmp_path):
    import torch

    from merges.dam.resuming import read_state, write_state

    state = {"steps": 3, "values": torch.arange(40.0)}
    path = tmp_path / "state"
    write_state(path, "key", state)
    assert torch.equal(read_state(path, lambda kind: "key")["values"], state["values"])
    right = path.read_bytes()
    for place in range(0, len(right), 7):
        path.write_bytes(right[:place] + bytes([right[place] ^ 16]) + right[place + 1 :])
        with pytest.raises(UserError, match="remove it to start anew"):
            read_state(path, lambda kind: "key")


def test_an_edited_state_of_a_search_is_noticed(tmp_path):
    from search.evaluation import Evaluation
    from search.state import State, StateFile

    file = StateFile(tmp_path / "out", {"seed": 1})
    tried = Evaluation(0, {"scale": 0.5}, average=0.25, genome=[0.5])
    file.save(State({"sigma": 0.3}, 1, {0: tried}, 1.5, 1.25))
    assert file.load().evaluations[0] == tried
    file.path.write_text(file.path.read_text().replace("0.25,", "0.75,", 1))
    with pytest.raises(UserError, match=r"changed or damaged; remove .*out.search to begin"):
        file.load()


def test_a_file_of_the_name_that_is_not_ours_says_nothing(tmp_path):
    for content in ("{}", "[1]", '{"name": "app"}', '{"kind": "x", "outputs": ["a"]}'):
        (tmp_path / "manifest.json").write_text(content)
        (tmp_path / "a.json").write_text("{}")
        check_recorded(tmp_path)
        check_recorded(tmp_path / "a.json")
        with pytest.raises(UserError, match="nothing to accept"):
            accept(tmp_path)


def test_a_large_file_is_hashed_once(tmp_path, monkeypatch):
    """By the operating system's own count of bytes read, not by this project's."""
    from common import hashes

    monkeypatch.setenv(hashes.VARIABLE, str(tmp_path / "cache.json"))
    monkeypatch.setattr(hashes, "_SETTLED_NS", -1)
    model = tmp_path / "model"
    model.mkdir()
    (model / "model.safetensors").write_bytes(bytes(16 << 20))
    outputs = {"model.safetensors": model / "model.safetensors"}
    write_manifest(model / "manifest.json", kind="expert", parameters={}, outputs=outputs)

    def read():
        counts = dict(line.split(": ") for line in Path("/proc/self/io").read_text().splitlines())
        return int(counts["rchar"])

    before = read()
    check_recorded(model)
    cold = read()
    check_recorded(model)
    assert cold - before >= 16 << 20 and read() - cold < 1 << 16
    bit(model / "model.safetensors")
    with pytest.raises(UserError, match="was changed"):
        check_recorded(model)


def table(top):
    """Return the rows of Table 1 by id, and all that the printed table says."""
    import csv
    import io

    from report.case_table import case_csv, case_grid
    from report.load import load_case
    from report.render import markdown

    case = load_case(json.loads((top / "config.json").read_text()), top, "case1")
    rows = {row["id"]: row for row in csv.DictReader(io.StringIO(case_csv(case)))}
    return rows, markdown(case_grid(case, 0))


def placed(top):
    """Put models and data where a results folder has them."""
    for name in ("base", "ja"):
        shutil.copytree(top / name, top / "case1/models" / name)
    shutil.copytree(top / "soup", top / "case1/merges/soup")
    shutil.copytree(top / "data", top / "case1/data")
    rows, text = table(top)
    assert {row["status"] for row in rows.values()} == {"ok"} and "edited" not in text
    assert rows["soup"]["Avg"]


def test_a_score_of_other_weights_than_the_model_has_is_no_number_in_a_table(top):
    placed(top)
    weights = top / "case1/merges/soup/model.safetensors"
    bit(weights)
    accept(weights.parent)
    rows, text = table(top)
    assert rows["soup"]["status"] == "changed since it was evaluated" and not rows["soup"]["Avg"]
    assert "Soup (changed since it was evaluated)" in text and rows["ja"]["Avg"]


def test_a_score_of_other_items_than_the_data_is_no_number_in_a_table(top):
    placed(top)
    items = top / f"case1/data/test/{SUITE}/gsm_en.jsonl"
    doubled(items)
    accept(items)
    rows, text = table(top)
    for id in ("base", "ja", "soup"):
        assert f"other items of {SUITE}/gsm_en" in rows[id]["status"] and not rows[id]["Avg"]
    assert f"evaluated on other items of {SUITE}" in text.replace("\\", "")


def test_a_score_that_was_edited_and_accepted_says_so_wherever_it_is_shown(top):
    placed(top)
    score = top / f"{SCORES}/soup.json"
    raised(score)
    accept(score)
    rows, text = table(top)
    assert rows["soup"]["status"] == "ok, edited by hand" and rows["soup"]["Avg"] == "0.987000"
    assert "Soup: its scores were edited by hand and accepted." in text
    assert {rows[id]["status"] for id in ("base", "ja")} == {"ok"}
    # Kept scores, which leave the suite without its manifests, say so too.
    from report import kept

    kept.keep(top / "config.json", top, top / "kept.jsonl")
    with kept.opened(top / "kept.jsonl") as experiment:
        edited = [model.id for model in experiment.cases[0].models if model.edits]
    assert edited == ["soup"]


def test_scores_that_were_dropped_in_without_manifests_are_shown(top):
    for manifest in (top / "case1").rglob("*manifest.json"):
        manifest.unlink()
    raised(top / f"{SCORES}/soup.json")
    rows, _ = table(top)
    assert rows["soup"]["status"] == "ok"
