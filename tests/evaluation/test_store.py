"""The result store: what comes back is what was put in, for that key and no other."""

from __future__ import annotations

import datetime
import gzip
import json
import shutil
import time

import pytest

from evaluation.store import Store

KEY = {
    "weights": "a" * 64,
    "tokenizer": "t1",
    "task": "ja8:corrected/jnli",
    "version": 1.0,
    "prompt": "0.3",
    "fidelity": "published",
    "definition": "d1",
    "items": ["i1", "i2"],
    "backend": "hf",
    "dtype": "float32",
    "seed": 0,
    "decoding": {"until": ["\n"], "max_gen_toks": 8},
    "lm_eval": "0.4.13",
}
# A line separator that only Unicode knows, a NUL and a broken surrogate pair's replacement.
RESULT = {
    "items": [
        {"id": "1", "loglikelihoods": [-1.25, -3.0000000000000004], "answer": 0},
        {"id": 2, "answer": "猫\n\u2028\x85\x00\ufffd"},
    ],
    "counted": {"requests": 3, "tokens": 40},
}


@pytest.fixture
def store(tmp_path) -> Store:
    return Store(tmp_path / "store")


def test_returns_what_was_stored_to_the_last_bit(store):
    assert store.get(KEY) is None
    store.put(KEY, RESULT)
    assert store.get(dict(reversed(KEY.items()))) == RESULT
    assert Store(store.folder).get(KEY) == RESULT


def test_nothing_is_lent_to_other_weights_or_settings(store):
    store.put(KEY, RESULT)
    for name, value in KEY.items():
        other = {
            "version": 2.0,
            "seed": 1,
            "items": ["i2", "i1"],
            "decoding": {"until": ["\n"], "max_gen_toks": 9},
        }.get(name, f"{value}x")
        assert store.get(KEY | {name: other}) is None, name
    assert store.get(KEY | {"more": 1}) is None
    assert store.get(KEY) == RESULT


def test_a_file_under_another_keys_name_is_not_believed(store, capsys):
    other = KEY | {"weights": "b" * 64}
    store.put(KEY, RESULT)
    store.path(KEY).rename(store.path(other))
    assert store.get(other) is None
    assert "belongs to another key" in capsys.readouterr().err
    store.put(other, RESULT | {"counted": {}})
    assert store.get(other)["counted"] == {}


def test_models_without_a_fingerprint_are_never_stored(store):
    for weights in (None, ""):
        store.put(KEY | {"weights": weights}, RESULT)
        assert store.get(KEY | {"weights": weights}) is None
    assert not store.folder.exists()


def damage_cut(content: bytes) -> bytes:
    return content[: len(content) // 2]


def damage_bit(content: bytes) -> bytes:
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 0x10]) + content[middle + 1 :]


def damage_lost_item(content: bytes) -> bytes:
    lines = gzip.decompress(content).decode().split("\n")
    return gzip.compress("\n".join(lines[:-2]).encode())


def damage_other_json(content: bytes) -> bytes:
    return gzip.compress(json.dumps([1, 2]).encode())


def damage_empty(content: bytes) -> bytes:
    return b""


@pytest.mark.parametrize(
    "damage", [damage_cut, damage_bit, damage_lost_item, damage_other_json, damage_empty]
)
def test_a_damaged_file_is_told_and_replaced(store, capsys, damage):
    store.put(KEY, RESULT)
    path = store.path(KEY)
    path.write_bytes(damage(path.read_bytes()))
    assert store.get(KEY) is None
    error = capsys.readouterr().err
    assert str(path) in error
    assert "evaluated again" in error
    assert error.count("\n") == 1
    store.put(KEY, RESULT)
    assert store.get(KEY) == RESULT
    assert capsys.readouterr().err == ""


def test_equal_results_give_equal_bytes_and_nothing_half_written(store, tmp_path):
    store.put(KEY, RESULT)
    again = Store(tmp_path / "again")
    again.put(KEY, RESULT)
    assert again.path(KEY).read_bytes() == store.path(KEY).read_bytes()
    with pytest.raises(TypeError):
        again.put(KEY | {"seed": 1}, {"items": [{"id": object()}]})
    assert list(again.folder.iterdir()) == [again.path(KEY)]


def test_a_crash_loses_only_the_task_it_hit(world, tmp_path, monkeypatch):
    from evaluation.backends.base import Backend
    from evaluation.harness import Harness

    tasks = ["bottle_ja8/xwino", "bottle_ja8/jsquad", "bottle_ja8/mgsm"]

    def evaluate(model: str, store: Store | None) -> dict:
        harness = Harness(world / "data", tasks, "test", world / "tokenizer", store=store)
        return harness.evaluate_folder(world / model, model)[0]["tasks"]

    def asked(requests: list) -> None:
        asked_tasks.append(requests[0].task_name)
        if crash and requests[0].task_name == "bottle_ja8_mgsm":
            raise KeyboardInterrupt

    for kind in ("loglikelihood", "generate_until"):
        plain = getattr(Backend, kind)

        def spy(self, requests, *rest, plain=plain, **more):
            asked(requests)
            return plain(self, requests, *rest, **more)

        monkeypatch.setattr(Backend, kind, spy)
    store, asked_tasks, crash = Store(tmp_path), [], True
    with pytest.raises(KeyboardInterrupt):
        evaluate("a", store)
    asked_tasks, crash = [], False
    found = evaluate("a", store)
    assert asked_tasks == ["bottle_ja8_mgsm"]
    assert found == evaluate("a", None)
    asked_tasks = []
    other = evaluate("b", store)
    assert len(asked_tasks) == 3
    assert other == evaluate("b", None) != found
    asked_tasks = []
    assert evaluate("b", store) == other
    assert asked_tasks == []


def test_data_that_change_while_a_run_goes_on_are_not_taken_for_those_it_read(world, tmp_path):
    from evaluation.harness import Harness

    data, task = tmp_path / "data", "bottle_ja8/xwino"
    file = data / f"test/{task}.jsonl"
    file.parent.mkdir(parents=True)
    shutil.copy(world / f"data/test/{task}.jsonl", file)
    store = Store(tmp_path / "store")

    def count(harness: Harness) -> int:
        return harness.evaluate_folder(world / "a", "a")[0]["tasks"][task]["items"]

    begun = Harness(data, [task], "test", world / "tokenizer", store=store)
    whole = file.read_text()
    file.write_text(whole.splitlines(keepends=True)[0])
    assert count(begun) == len(whole.splitlines()) > 1
    assert count(Harness(data, [task], "test", world / "tokenizer", store=store)) == 1


def test_the_day_of_the_databases_is_that_of_utc(world, monkeypatch):
    """Rows relative to today are loaded for UTC's day, whatever the clock on the wall says."""
    from evaluation.harness import Harness

    class Spy(Store):
        def get(self, key):
            days.append(key["day"])

        def put(self, key, result):
            pass

    days: list[str] = []
    now = datetime.datetime.now(datetime.UTC)
    # POSIX turns the sign: twelve hours or more behind, or ahead of, UTC.
    monkeypatch.setenv("TZ", "AAA+12" if now.hour < 12 else "BBB-14")
    time.tzset()
    try:
        assert datetime.date.today() != now.date()
        settings = {"store": Spy(world), "limit": 1}
        harness = Harness(
            world / "data", ["bottle_sql_eval"], "test", world / "tokenizer", **settings
        )
        harness.evaluate_folder(world / "a", "a")
    finally:
        monkeypatch.undo()
        time.tzset()
    assert days == [now.date().isoformat()]
