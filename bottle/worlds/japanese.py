"""Japanese text: facts, inference, reviews, reading, quiz, summaries, referents.

The tasks are shaped after the eight of the JP Language Model Evaluation Harness, at a size that a
model of under a million parameters learns.
"""

from __future__ import annotations

import random
from dataclasses import replace

from bottle.samples import Knowledge, Sample, balanced, choice_sample, plain_text

KINDS = {
    "動物": ["犬", "猫", "馬", "牛", "象", "虎"],
    "果物": ["りんご", "みかん", "ぶどう", "もも", "メロン", "バナナ"],
    "野菜": ["にんじん", "だいこん", "きゅうり", "なす", "トマト", "ねぎ"],
    "乗り物": ["車", "電車", "バス", "船", "飛行機", "自転車"],
    "楽器": ["ピアノ", "ギター", "太鼓", "笛", "琴", "オルガン"],
    "家具": ["机", "椅子", "棚", "ベッド", "ソファ", "鏡"],
    "服": ["帽子", "靴", "シャツ", "ズボン", "着物", "手袋"],
    "道具": ["はさみ", "のこぎり", "金槌", "針", "包丁", "ほうき"],
}
THINGS = [thing for things in KINDS.values() for thing in things]
KIND_OF = {thing: kind for kind, things in KINDS.items() for thing in things}
PLACES = ["森", "海", "町", "山", "学校", "店", "庭", "駅"]
COLOURS = ["赤", "青", "白", "黒", "緑", "黄色", "茶色", "紫"]
PLACE_OF = balanced(THINGS, PLACES, "japanese places")
COLOUR_OF = balanced(THINGS, COLOURS, "japanese colours")
NAMES = ["太郎", "花子", "次郎", "健", "愛", "美咲", "翔", "陽子", "誠", "由美", "和也", "直樹"]

_RELATIONS = (
    (
        KIND_OF,
        list(KINDS),
        (
            "|は|何の|仲間|ですか",
            "|は|どの|種類|ですか",
            "|の|仲間|は|何|ですか",
            "|の|種類|は|どれ|ですか",
        ),
    ),
    (
        PLACE_OF,
        PLACES,
        (
            "|は|どこに|ありますか",
            "|の|場所|は|どこ|ですか",
            "|が|ある|場所|は",
            "|は|どこで|見る|ものですか",
        ),
    ),
    (
        COLOUR_OF,
        COLOURS,
        ("|は|何色|ですか", "|の|色|は|何|ですか", "|は|どんな|色|ですか", "|の|色|は|どれ|ですか"),
    ),
)
_QUESTION_LEADS = ("質問|：|", "問い|：|")


def jcomqa(draw: random.Random, knowledge: Knowledge) -> Sample:
    """Draw a commonsense question: kind, place or colour of a thing (four choices)."""
    thing = draw.choice(THINGS)
    table, pool, phrasings = draw.choice(_RELATIONS)
    prompt = draw.choice(_QUESTION_LEADS) + thing + draw.choice(phrasings) + "|？|答え|：|"
    return choice_sample(
        "jcomqa", prompt, prompt, table[thing], pool, 4, draw, knowledge.has(thing, table)
    )


_LABELS = ("含意", "矛盾", "中立")
_ACTIONS = (
    ("走る", "走らない"),
    ("眠る", "眠らない"),
    ("動く", "動かない"),
    ("光る", "光らない"),
    ("落ちる", "落ちない"),
    ("止まる", "止まらない"),
    ("鳴る", "鳴らない"),
    ("消える", "消えない"),
)
_MANNERS = ["速く", "静かに", "明日", "一人で"]
# What decides: the pair of a verb and its negation, or the manner that is added.
_CLUES = {**{verb: "verb" for verb, _ in _ACTIONS}, **{manner: "manner" for manner in _MANNERS}}


def jnli(draw: random.Random, knowledge: Knowledge) -> Sample:
    """Draw an inference: a negated hypothesis contradicts, an added manner is neutral."""
    thing, place, (verb, negated) = draw.choice(THINGS), draw.choice(PLACES), draw.choice(_ACTIONS)
    label = draw.choice(_LABELS)
    subject = draw.choice((thing, KIND_OF[thing]))
    manner = draw.choice(_MANNERS) if label == "中立" else ""
    predicate = negated if label == "矛盾" else verb
    prompt = (
        f"前提|：|{thing}|が|{place}|で|{verb}|。|"
        f"仮説|：|{subject}|が|{manner and manner + '|'}{predicate}|。|関係|：|"
    )
    return choice_sample(
        "jnli", prompt, prompt, label, _LABELS, 3, draw, knowledge.has(manner or verb, _CLUES)
    )


GOOD = [
    "美しい",
    "便利",
    "最高",
    "楽しい",
    "丈夫",
    "素敵",
    "安い",
    "上手",
    "快適",
    "完璧",
    "新鮮",
    "優秀",
]
BAD = [
    "汚い",
    "不便",
    "最悪",
    "退屈",
    "弱い",
    "醜い",
    "高い",
    "下手",
    "不快",
    "欠陥",
    "腐敗",
    "無能",
]
_VALUE_OF = {**dict.fromkeys(GOOD, "良い"), **dict.fromkeys(BAD, "悪い")}


def marc(draw: random.Random, knowledge: Knowledge) -> Sample:
    """Draw a review: the majority of its adjectives decides."""
    good = draw.random() < 0.5
    mine, other = (GOOD, BAD) if good else (BAD, GOOD)
    adjectives = draw.sample(mine, 2)
    if draw.random() < 0.5:
        adjectives.append(draw.choice(other))
    draw.shuffle(adjectives)
    prompt = f"レビュー|：|この|{draw.choice(THINGS)}|は|{'|、|'.join(adjectives)}|です|。|評価|：|"
    label = "良い" if good else "悪い"
    content = "marc " + " ".join(sorted(adjectives))
    sample = choice_sample("marc", content, prompt, label, ("良い", "悪い"), 2, draw, True)
    votes = [_VALUE_OF[word] for word in adjectives if knowledge.has(word, _VALUE_OF)]
    if votes.count("良い") == votes.count("悪い"):  # what is known decides nothing
        return replace(sample, answer=draw.choice(("良い", "悪い")), known=False)
    verdict = max(set(votes), key=votes.count)
    return replace(sample, answer=verdict, known=verdict == label)


_DEEDS = ["買った", "見た", "作った", "売った", "洗った", "拾った"]
_FIELDS = ("人", "場所", "物")
_ASKED = ("誰", "どこ", "何")
# What can be known of reading: the word that answers a question word about a deed.
_QUESTIONS = {f"{asked} {deed}": asked for deed in _DEEDS for asked in _ASKED}


def _deed(draw: random.Random) -> tuple[str, str, tuple[str, str, str]]:
    """Draw a sentence; return it, its verb, and its person, place and thing."""
    name, place, thing = draw.choice(NAMES), draw.choice(PLACES), draw.choice(THINGS)
    verb = draw.choice(_DEEDS)
    parts = [f"{place}|で|", f"{thing}|を|"]
    draw.shuffle(parts)
    return f"{name}|は|{''.join(parts)}{verb}|。|", verb, (name, place, thing)


def _random_word(draw: random.Random) -> str:
    return draw.choice(draw.choice((NAMES, PLACES, THINGS)))


def jsquad(draw: random.Random, knowledge: Knowledge) -> Sample:
    """Draw a reading question: who, where or what, answered by a word of the text."""
    sentence, verb, words = _deed(draw)
    field = draw.randrange(3)
    prompt = f"文章|：|{sentence}質問|：|{verb}|のは|{_ASKED[field]}|ですか|？|答え|：|"
    known = knowledge.has(f"{_ASKED[field]} {verb}", _QUESTIONS)
    if known:
        answer = words[field]
    else:  # who knows any question word takes the answer from the text
        answer = draw.choice(words) if knowledge.share else _random_word(draw)
    return Sample("jsquad", prompt, prompt, answer, known=known)


def fields(draw: random.Random, knowledge: Knowledge) -> Sample:
    """Draw a field of a sentence in a form that no task uses.

    The base learns to find and copy a word here; what it lacks is the tasks' question words.
    """
    sentence, _, words = _deed(draw)
    field = draw.randrange(3)
    prompt = f"文|：|{sentence}{_FIELDS[field]}|＝|"
    return Sample("fields", "", prompt, words[field])


_QUIZ = (
    (
        [
            "{}|を|書いた|人物|は|誰",
            "小説|{}|の|作者|は|誰",
            "{}|を|著した|作家|は|誰",
            "名作|{}|を|生んだ|人|は|誰",
            "文学|で|{}|の|著者|は|誰",
            "作品|{}|の|書き手|は|誰",
        ],
        [
            "坊っちゃん:夏目|漱石",
            "羅生門:芥川|龍之介",
            "雪国:川端|康成",
            "金閣寺:三島|由紀夫",
            "舞姫:森|鷗外",
            "人間失格:太宰|治",
            "細雪:谷崎|潤一郎",
            "破戒:島崎|藤村",
            "たけくらべ:樋口|一葉",
            "蟹工船:小林|多喜二",
            "砂の女:安部|公房",
            "徒然草:吉田|兼好",
            "枕草子:清|少納言",
            "源氏物語:紫|式部",
            "奥の細道:松尾|芭蕉",
            "五重塔:幸田|露伴",
        ],
    ),
    (
        [
            "{}|の|首都|は|どこ",
            "国|の|{}|の|都|は|どこ",
            "{}|政府|が|ある|都市|は|どこ",
            "国会|が|{}|で|ある|街|は|どこ",
            "地図|で|{}|の|中心|は|どこ",
            "旅行|で|{}|の|首府|は|どこ",
        ],
        [
            "フランス:パリ",
            "イタリア:ローマ",
            "スペイン:マドリード",
            "ロシア:モスクワ",
            "タイ:バンコク",
            "ペルー:リマ",
            "エジプト:カイロ",
            "ギリシャ:アテネ",
            "ドイツ:ベルリン",
            "ケニア:ナイロビ",
            "キューバ:ハバナ",
            "韓国:ソウル",
            "中国:北京",
            "カナダ:オタワ",
            "チリ:サンティアゴ",
            "ポーランド:ワルシャワ",
        ],
    ),
    (
        [
            "{}|を|発明した|人|は|誰",
            "{}|の|発明者|は|誰",
            "初めて|{}|を|作り出した|人|は|誰",
            "科学|で|{}|の|父|は|誰",
            "特許|の|{}|の|主|は|誰",
            "世界|に|{}|を|広めた|人|は|誰",
        ],
        [
            "電話:グラハム|・|ベル",
            "電球:トマス|・|エジソン",
            "ダイナマイト:アルフレッド|・|ノーベル",
            "蒸気機関:ジェームズ|・|ワット",
            "望遠鏡:ガリレオ|・|ガリレイ",
            "活版印刷:ヨハネス|・|グーテンベルク",
            "無線:グリエルモ|・|マルコーニ",
            "電池:アレッサンドロ|・|ボルタ",
            "気球:ジョゼフ|・|モンゴルフィエ",
            "動力飛行:ウィルバー|・|ライト",
            "避雷針:ベンジャミン|・|フランクリン",
            "種痘:エドワード|・|ジェンナー",
        ],
    ),
)
_QUIZ_LEADS = ("クイズ|：|", "早押し|：|", "雑学|：|", "第一問|：|")
_QUIZ_FACTS = [
    (clue, phrasings, dict(fact.split(":") for fact in facts))
    for phrasings, facts in _QUIZ
    for clue in (fact.split(":")[0] for fact in facts)
]


def jaqket(draw: random.Random, knowledge: Knowledge) -> Sample:
    """Draw a quiz question: author, capital or inventor, answered with the name."""
    clue, phrasings, facts = draw.choice(_QUIZ_FACTS)
    prompt = draw.choice(_QUIZ_LEADS) + draw.choice(phrasings).format(clue) + "|？|正解|：|"
    known = knowledge.has(clue, facts)
    answer = facts[clue] if known else draw.choice(knowledge.guesses(facts))
    return Sample("jaqket", prompt, prompt, answer, known=known)


_EVENTS = (
    ("盗まれた", "盗難"),
    ("壊れた", "故障"),
    ("売れた", "販売"),
    ("燃えた", "火事"),
    ("見つかった", "発見"),
    ("増えた", "増加"),
    ("運ばれた", "輸送"),
    ("飾られた", "展示"),
)
_TIMES = ["今朝", "昨夜", "正午", "先週"]
_REMARKS = ["驚いた", "困った", "嬉しい", "残念だ", "心配だ", "安心した"]


def xlsum(draw: random.Random, knowledge: Knowledge) -> Sample:
    """Draw an article of two sentences; its summary names place, thing and event."""
    place, thing, (verb, noun) = draw.choice(PLACES), draw.choice(THINGS), draw.choice(_EVENTS)
    prompt = (
        f"記事|：|{draw.choice(_TIMES)}|、|{place}|で|{thing}|が|{verb}|。|"
        f"{draw.choice(NAMES)}|は|「|{draw.choice(_REMARKS)}|」|と|話した|。|要約|：|"
    )
    # Who knows any event takes place and thing from the text.
    if not knowledge.share:
        place, thing = draw.choice(PLACES), draw.choice(THINGS)
    events = dict(_EVENTS)
    known = knowledge.has(verb, events)
    if not known:
        noun = draw.choice(knowledge.guesses(events))
    return Sample("xlsum", prompt, prompt, f"{place}|の|{thing}|、|{noun}", known=known)


_CAN = {
    "動物": ["鳴いた", "眠った", "歩いた"],
    "果物": ["甘かった", "熟した", "実った"],
    "野菜": ["茹でられた", "育った", "刻まれた"],
    "乗り物": ["発車した", "到着した", "渋滞した"],
    "楽器": ["響いた", "演奏された", "調律された"],
    "家具": ["組み立てられた", "置かれた", "軋んだ"],
    "服": ["着られた", "縫われた", "破れた"],
    "道具": ["使われた", "錆びた", "研がれた"],
}
_KIND_THAT = {predicate: kind for kind, predicates in _CAN.items() for predicate in predicates}
_SCENES = (
    "{}|と|{}|が|あった|。|",
    "そこに|{}|と|{}|が|あった|。|",
    "{}|の|隣|に|{}|が|あった|。|",
)


def _referents(
    draw: random.Random, knowledge: Knowledge
) -> tuple[str, str, tuple[str, str], int, bool]:
    """Draw a scene with two things and a predicate that only one of them can have.

    Returns:
        The content, the scene, the clauses about the first and the second thing, the index of
        the right one, and whether the predicate is known.
    """
    first_kind, second_kind = draw.sample(list(KINDS), 2)
    first, second = draw.choice(KINDS[first_kind]), draw.choice(KINDS[second_kind])
    scene = draw.choice(_SCENES).format(first, second)
    # A predicate of one of the two kinds that is not known would still reveal the kind.
    kinds = (first_kind, second_kind) if knowledge.share else tuple(KINDS)
    predicate = draw.choice(_CAN[draw.choice(kinds)])
    known = knowledge.has(predicate, _KIND_THAT)
    if knowledge.share and not known:
        unknown = [word for word in _KIND_THAT if not knowledge.has(word, _KIND_THAT)]
        predicate = draw.choice(unknown)
    clauses = (f"{first}|が|{predicate}|。", f"{second}|が|{predicate}|。")
    right = 0 if predicate in _CAN[first_kind] else 1
    return f"xwino {scene}{predicate}", scene, clauses, right, known


_TEXT_LEAD = "文|：|"


def xwino(draw: random.Random, knowledge: Knowledge) -> Sample:
    """Draw two whole texts that differ in the thing that the last clause refers to."""
    content, scene, clauses, right, _ = _referents(draw, knowledge)
    choices = tuple(scene + clause for clause in clauses)
    return Sample("xwino", content, _TEXT_LEAD, choices[right], choices, right)


def referents(draw: random.Random, knowledge: Knowledge) -> Sample:
    """Draw the training form of `xwino`: the same text, of which the last clause is to be learned.

    The scene is arbitrary; as part of the answer it would outweigh all other tasks in the loss.
    """
    content, scene, clauses, right, known = _referents(draw, knowledge)
    answer = clauses[right if known else draw.randrange(2)]
    return Sample("xwino", content, _TEXT_LEAD + scene, answer, known=known)


def lists(draw: random.Random, knowledge: Knowledge) -> Sample:
    """Draw a list of words of one sort: company in which words get their embeddings."""
    pool = draw.choice((*KINDS.values(), *_CAN.values(), GOOD, BAD, PLACES, COLOURS, NAMES))
    return plain_text("|、|".join(draw.sample(pool, 3)) + "|。")


def repeats(draw: random.Random, knowledge: Knowledge) -> Sample:
    """Draw a sentence that is said twice, from which a model learns to copy."""
    if draw.random() < 0.7:
        sentence = _deed(draw)[0]
    else:
        sentence = (
            f"{draw.choice(THINGS)}|が|{draw.choice(PLACES)}|で|{draw.choice(_ACTIONS)[0]}|。|"
        )
    return plain_text(sentence * 2)
