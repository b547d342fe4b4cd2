"""Hand-made rows in the schemas of the eight Japanese tasks: no benchmark's own text."""

from __future__ import annotations

import json
from pathlib import Path

JCOMMONSENSEQA = [
    {
        "id": i,
        "question": f"質問{i}は？",
        "choices": [f"選{i}{c}" for c in "あいうえお"],
        "gold": i % 5,
    }
    for i in range(6)
]
JNLI = [
    {"id": str(i), "premise": f"前{i}。", "hypothesis": f"仮{i}。", "label": label}
    for i, label in enumerate(
        ["neutral", "entailment", "neutral", "contradiction", "neutral", "entailment"]
    )
]
MARC = [{"id": i, "sentence": f"品物{i}は良い。", "label": i % 2} for i in range(5)]
JSQUAD = [
    {
        "id": f"a{i}",
        "title": f"題{i}",
        "context": f"題{i} [SEP] 文脈{i}である。",
        "question": f"何{i}か。",
        "answers": [f"文脈{i}", f"文{i}"],
    }
    for i in range(5)
]
JAQKET = [
    {
        "id": f"Q{i}",
        "question": f"首都{i}は?",
        "contexts": [f"本文{i}{c}" for c in "あいうえお"],
        "answers": [f"都{i}"],
    }
    for i in range(4)
]
XLSUM = [{"id": i, "text": f"記事{i}の文。", "summary": f"要約{i}。"} for i in range(4)]
XWINOGRAD = [
    {"id": i, "sentence1": f"甲{i}が勝った。", "sentence2": f"乙{i}が勝った。", "gold": i % 2}
    for i in range(4)
]
MGSM = [
    {
        "id": i,
        "question": f"林檎が{i}個と2個で何個？",
        "answer": "",
        "answer_number": i + 2,
    }
    for i in range(4)
]
MGSM_EXAMPLES = [
    {
        "id": i,
        "question": f"問題：蜜柑が{i}個と1個で何個？",
        "answer": f"ステップごとの答え：{i}+1={i + 1}。答えは{i + 1}です。",
        "answer_number": i + 1,
    }
    for i in range(8)
]
ITEMS = {
    "jcommonsenseqa": JCOMMONSENSEQA,
    "jnli": JNLI,
    "marc_ja": MARC,
    "jsquad": JSQUAD,
    "jaqket_v2": JAQKET,
    "xlsum_ja": XLSUM,
    "xwinograd_ja": XWINOGRAD,
    "mgsm": MGSM,
}


def pool_of(task: str) -> list[dict]:
    """Rows that are no items, for the shots: the same rows under other numbers."""
    if task == "mgsm":
        return MGSM_EXAMPLES
    text = json.dumps(ITEMS[task], ensure_ascii=False)
    rows = json.loads(text.replace("。", "！").replace("は", "と"))
    return [row | {"id": f"pool{number}"} for number, row in enumerate(rows)]


def write(data: Path) -> Path:
    """Write all rows where the harness looks for them."""
    folder = data / "test/ja8"
    folder.mkdir(parents=True)
    for task, rows in ITEMS.items():
        files = {f"{task}.jsonl": rows}
        if task != "xwinograd_ja":
            files[f"{task}.fewshot.jsonl"] = pool_of(task)
        for name, content in files.items():
            lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in content]
            (folder / name).write_text("".join(lines), encoding="utf-8")
    return data


class Characters:
    """The part of a tokenizer that caps need: every character is a token."""

    def encode(self, text: str, add_special_tokens: bool) -> list[str]:
        """Split a text."""
        assert not add_special_tokens
        return list(text)


def built(data: Path, task, limit: int | None = None) -> list:
    """Build a task's requests as the harness does, without a model."""
    from evaluation.definitions import bind, load_definition
    from evaluation.items import PROCESSORS
    from evaluation.lm_task import LocalTask, read_items, read_pool

    definition = {"process_results": PROCESSORS[task.kind]} | load_definition(task)
    definition = bind(definition, tokenizer=Characters(), context=None)
    rows = read_items(data, "test", task, definition["metadata"]["columns"])
    pool = read_pool(data, "test", task, definition.get("num_fewshot", 0))
    lm_task = LocalTask(definition, rows, pool, limit)
    lm_task.build_all_requests()
    return lm_task.instances
