"""Hand-made rows with the columns of the published benchmarks' files; no benchmark's own text."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

Row = dict[str, Any]
_ROWS = 12  # of each file: more than the rehearsal asks, and enough for every task's shots
_EXEMPLARS = 8  # MGSM's file of solved examples, as published
_TOWNS = ("東京", "京都", "大阪", "札幌", "福岡")
_STAEDTE = ("Berlin", "Bremen", "Dresden", "Mainz")
_DATABASE = "yelp"  # of SQL-Eval's, the one that the hand-made questions ask
_SHOP = (("pen", 3), ("cup", 12), ("pan", 25))
DATABASE_ROWS = len(_SHOP)


def _mgsm(i: int, solved: bool) -> Row:
    question = f"箱にりんごが{i}個あり、{i + 2}個もらいました。全部で何個ですか？"
    steps = f"ステップごとの答え：{i}+{i + 2}={2 * i + 2}。答えは{2 * i + 2}です。"
    return {
        "question": ("問題：" if solved else "") + question,
        "answer": steps if solved else None,
        "answer_number": 2 * i + 2,
        "equation_solution": f"{i} + {i + 2} = {2 * i + 2}." if solved else None,
    }


def _xwinograd(i: int) -> Row:
    cause = f"が{i}倍大きいからだ。"
    pair = {f"sentence{n}": f"箱は鞄に入らない。{who}{cause}" for n, who in ((1, "箱"), (2, "鞄"))}
    return pair | {"answer": i % 2 + 1}


def _xlsum(i: int) -> Row:
    town = _TOWNS[i % 5]
    return {
        "id": f"r{i}",
        "url": "",
        "title": f"{town}の橋",
        "summary": f"{town}で{i}本目の橋が開通した。",
        "text": f'{town}で新しい橋が開通した。\nこれで{i}本目となり、市長は"喜ばしい"と述べた。',
    }


def _jaqket(i: int) -> Row:
    town = _TOWNS[i % 5]
    texts = [f"{town}は駅が{i}つある都市である。", *(f"{t}の話。" for t in _TOWNS if t != town)]
    return {
        "qid": f"R{i}",
        "question": f"駅が{i}つある都市はどこ?",
        "answers": [town, f"{town}市"],
        # The sixth is left out by the conversion.
        "ctxs": [
            {"id": f"{i}-{n}", "title": "都市", "text": text, "score": 1.0, "has_answer": n == 0}
            for n, text in enumerate([*texts, "六つ目の本文。"])
        ],
    }


def _marc(i: int) -> Row:
    verdict = ("とても良い", "すぐに壊れた")[i % 2]
    return {"sentence": f"{i}回使いました。{verdict}。", "label": i % 2, "review_id": f"R{i}"}


def _jnli(i: int) -> Row:
    second = ("犬がいる。", "犬はいない。", "犬は白い。")[i % 3]
    return {
        "sentence_pair_id": f"{i}",
        "yjcaptions_id": f"{i}-{i}",
        "sentence1": f"犬が{i}匹走っている。",
        "sentence2": second,
        "label": i % 3,
    }


def _jcommonsenseqa(i: int) -> Row:
    choices = {f"choice{n}": town for n, town in enumerate(_TOWNS)}
    question = f"{_TOWNS[i % 5]}にある駅はどこの駅？{i}"
    return {"q_id": i, "question": question, **choices, "label": i % 5}


def _jsquad(i: int) -> Row:
    town = _TOWNS[i % 5]
    answers = [f"{1900 + i}年", f"{1900 + i}"]
    return {
        "id": f"a{i}p0q0",
        "title": town,
        "context": f"{town} [SEP] {town}の駅は{1900 + i}年に開業した。",
        "question": f"{town}の駅が開業したのは何年か。",
        "answers": {"text": answers, "answer_start": [15, 15]},
        "is_impossible": False,
    }


def _boolq(i: int) -> Row:
    return {
        "paragraph": f"이 도시에는 역이 {i}개 있고 강이 하나 흐른다.",
        "question": f"이 도시에 역이 {i + i % 2}개 있는가?",
        "label": 1 - i % 2,
    }


def _copa(i: int) -> Row:
    return {
        "premise": f"비가 {i}일 동안 내렸다.",
        "question": ("결과", "원인")[i % 2],
        "alternative_1": "강물이 불었다.",
        "alternative_2": "구름이 몰려왔다.",
        "label": i % 2,
    }


def _kobest_hellaswag(i: int) -> Row:
    endings = ("물을 마신다.", "집에 간다.", "책을 덮는다.", "문을 연다.")
    named = {f"ending_{n}": text for n, text in enumerate(endings, 1)}
    return {"context": f"그는 책을 {i}쪽 읽었다. 눈이 아팠다."} | named | {"label": i % 4}


def _sentineg(i: int) -> Row:
    return {"sentence": f"{i}번 샀는데 " + ("별로예요", "정말 좋아요")[i % 2], "label": i % 2}


def _wic(i: int) -> Row:
    second = ("[손]이 모자라다.", "[손]을 씻었다.")[i % 2]
    first = f"아이가 [손]을 {i}번 흔들었다."
    return {"word": "손", "context_1": first, "context_2": second, "label": i % 2}


def _arc(i: int) -> Row:
    options = {f"option_{letter}": town for letter, town in zip("abcd", _STAEDTE, strict=True)}
    question = {"id": f"R/{i}", "instruction": f"Welche Stadt hat {i} Brücken?"}
    return question | options | {"option_e": None, "answer": "ABCD"[i % 4]}


def _okapi_hellaswag(i: int) -> Row:
    endings = [f"Er fährt nach {town}." for town in _STAEDTE]
    begun = {"ctx_a": f"Ein Mann wartet {i} Minuten am Gleis.", "ctx_b": "der Zug kommt"}
    about = {"ind": i, "activity_label": "Zug fahren", **begun, "ctx": " ".join(begun.values())}
    return about | {"endings": endings, "label": f"{i % 4}"}


def _mmlu(i: int) -> Row:
    options = {f"option_{letter}": f"{i + n}" for n, letter in enumerate("abcd")}
    question = {"id": f"arithmetik/test/{i}", "instruction": f"Was ist {i} + {i % 4}?"}
    return question | options | {"answer": "ABCD"[i % 4]}


def _truthfulqa(i: int) -> Row:
    true, false = [f"Ja, {i} Mal.", "Ja."], ["Nein.", "Niemals."]
    return {
        "question": f"Fährt der Zug {i} Mal am Tag?",
        "mc1_targets_choices": [true[0], *false],
        "mc1_targets_labels": [1, 0, 0],
        "mc2_targets_choices": [*true, *false],
        "mc2_targets_labels": [1, 1, 0, 0],
    }


def _question(i: int, sqlite: bool) -> Row:
    gold = f"SELECT COUNT(*) FROM shop WHERE amount > {i};"
    about = {
        "question": f"How many things cost more than {i}?",
        "query": gold,
        "db_name": _DATABASE,
        "query_category": ("group_by", "ratio")[i % 2],
        "instructions": "" if i % 3 else "Count each thing once.",
    }
    return about | ({"db_type": "sqlite"} if sqlite else {})


_MAKERS: dict[str, Callable[[int], Row]] = {
    "ja8/xwinograd_ja": _xwinograd,
    "ja8/xlsum_ja": _xlsum,
    "ja8/jaqket_v2": _jaqket,
    "ja8/marc_ja": _marc,
    "ja8/jnli": _jnli,
    "ja8/jcommonsenseqa": _jcommonsenseqa,
    "ja8/jsquad": _jsquad,
    "kobest/boolq": _boolq,
    "kobest/copa": _copa,
    "kobest/hellaswag": _kobest_hellaswag,
    "kobest/sentineg": _sentineg,
    "kobest/wic": _wic,
    "okapi_de/arc": _arc,
    "okapi_de/hellaswag": _okapi_hellaswag,
    "okapi_de/mmlu": _mmlu,
    "okapi_de/truthfulqa": _truthfulqa,
}


def rows_of(name: str, role: str) -> list[Row]:
    """Make the rows of one file, in the columns of the published one.

    Args:
        name: The benchmark's full name, suite/task.
        role: Of the file, a key of the source's `files`; each has other rows.
    """
    if name == "ja8/mgsm":
        solved = role == "fewshot"
        return [_mgsm(i + 1, solved) for i in range(_EXEMPLARS if solved else _ROWS)]
    if name.startswith("sql_eval/"):
        return [_question(i, role == "sqlite") for i in range(_ROWS)]
    first = 100 if role == "fewshot" else 1
    return [_MAKERS[name](first + i) for i in range(_ROWS)]


def database(ending: str) -> str | dict[str, Any]:
    """Make a database as SQL-Eval's: its dump (sql), or its description (json)."""
    if ending == "sql":
        values = ",\n".join(f"  ('{thing}', {amount})" for thing, amount in _SHOP)
        return (
            "CREATE TABLE public.shop (\n    thing text,\n    amount bigint\n);\n\n"
            f"INSERT INTO public.shop (thing, amount) VALUES\n{values};\n"
        )
    columns = {"thing": ("text", "What is sold"), "amount": ("bigint", "Its price")}
    table = [
        {"column_name": name, "data_type": kind, "column_description": about}
        for name, (kind, about) in columns.items()
    ]
    return {"table_metadata": {"shop": table}, "glossary": ""}
