"""Models of different vocabularies, brought to one by a stated policy."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, cast, get_args

import numpy as np

from checkpoints.adapters import Adapter
from checkpoints.layout import read_object
from checkpoints.loading import check_depth
from checkpoints.names import with_vocabulary_size
from checkpoints.presented import Presented
from checkpoints.reading import Model
from checkpoints.rows import BASE, MEAN, OWN, Holder, Reordered, Rows
from checkpoints.settling import settle
from checkpoints.tokens import TOKENIZER, Tokens, compare_folders, read_tokens
from checkpoints.union import NewToken, output_tokenizer
from common.errors import UserError, nearest
from common.files import write_bytes, write_json

Policy = Literal["refuse", "base", "union", "crop-to-base"]


@dataclass(frozen=True)
class Alignment:
    """Models of one vocabulary.

    Attributes:
        base: The base, or the model in its place.
        experts: The experts by name.
        rows: Rows of the result's embedding; None where they are the base's own.
        files: Tokenizer files of the result that differ from the base's, by name; None for a file
            that it must not hold.
        notes: What was done, a sentence each.
    """

    base: Model
    experts: dict[str, Model]
    rows: int | None = None
    files: dict[str, bytes | None] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def finish(self, folder: Path) -> None:
        """Bring configuration and tokenizer in a result's folder to the common vocabulary.

        Args:
            folder: The folder, with the base's configuration and tokenizer files.
        """
        for name, content in self.files.items():
            if content is None:
                (folder / name).unlink(missing_ok=True)
            else:
                write_bytes(folder / name, content)
        if self.rows is not None:
            config = read_object(folder / "config.json")
            write_json(folder / "config.json", with_vocabulary_size(config, self.rows))


def _rows_of(model: Model, label: str) -> int:
    found = model.rows_per_token()
    if not found:
        raise UserError(
            f"{label} ({model.path}) has no embedding of a known name; only the vocabulary policy "
            "refuse is possible"
        )
    if len(set(found.values())) > 1:
        raise UserError(f"{label} ({model.path}): embedding and head have unlike rows {found}")
    return next(iter(found.values()))


def _tokens_of(model: Model, label: str, policy: str, base: Tokens | None = None) -> Tokens:
    tokens = read_tokens(model.path)
    origin = model.origin if isinstance(model, Presented) else model
    if tokens is None and isinstance(origin, Adapter):
        tokens = base  # an adapter without a tokenizer was trained with its base's
    if tokens is None:
        raise UserError(
            f"{label} ({model.path}) has no {TOKENIZER}; the vocabulary policy {policy} needs it"
        )
    return tokens


def _crop(base: Model, experts: Mapping[str, Model]) -> Alignment:
    rows, tokens, aligned, notes = _rows_of(base, "the base"), read_tokens(base.path), {}, []
    for name, expert in experts.items():
        label = f"expert {name}"
        own = _rows_of(expert, label)
        if own < rows:
            raise UserError(
                f"{label} ({expert.path}) has {own} rows, fewer than the base's {rows}; "
                "choose the vocabulary policy base"
            )
        theirs = read_tokens(expert.path)
        if tokens is not None and theirs is not None:
            ours, others = tokens.by_id(), theirs.by_id()
            for number, token in sorted(ours.items()):
                if number < rows and others.get(number) != token:
                    raise UserError(
                        f"{label} ({expert.path}): id {number} is {others.get(number)!r}, the "
                        f"base's is {token!r}, so that cropping would mix tokens; choose the "
                        "vocabulary policy base or union"
                    )
        plan = Rows(np.zeros(rows, dtype=np.int8), np.arange(rows))
        if plan.is_identity(own):
            aligned[name] = expert
        else:
            aligned[name] = Reordered(expert, base, plan)
            notes.append(f"{label}: the last {own - rows} of {own} rows are left out.")
    return Alignment(base, aligned, notes=tuple(notes))


def _plan(
    model: Model,
    tokens: Tokens,
    rows: int,
    result: Mapping[int, str],
    count: int,
    base: tuple[Model, Tokens, int],
    holders: Mapping[str, list[Holder]],
    padding: Mapping[int, Holder],
) -> Rows:
    """Find where each row of a model of so many rows comes from in the result.

    Args:
        model: The model, with its `tokens` and its number of `rows`.
        result: The result's tokens by id; an id without one is a row of padding.
        count: The result's rows.
        base: The base, its vocabulary and its rows.
        holders: For each token that the base lacks, who has a row for it.
        padding: For rows of padding that the base lacks, who has them.
    """
    whose, base_tokens, base_rows = base
    taken = set(tokens.ids.values())
    origin, place = np.zeros(count, dtype=np.int8), np.arange(count)
    means: dict[int, list[Holder]] = {}
    for row in range(count):
        token = result.get(row)
        if token is None:  # padding, unless the model has a token there
            own = row if row < rows and row not in taken else None
            held = row if row < base_rows else None
        else:
            own = tokens.ids.get(token)
            held = base_tokens.ids.get(token)
        if own is not None and own < rows:
            place[row] = own
        elif held is not None and held < base_rows:
            origin[row], place[row] = BASE, held
        else:
            origin[row] = MEAN
            means[row] = [padding[row]] if token is None else holders[token]
    if whose is model:
        origin[origin == BASE] = OWN
    return Rows(origin, place, means)


def _match(
    base: Model, experts: Mapping[str, Model], policy: Policy, donor: str | None
) -> Alignment:  # long: each policy is a variation of the others
    base_rows, base_tokens = _rows_of(base, "the base"), _tokens_of(base, "the base", policy)
    known = {
        name: (
            expert,
            _tokens_of(expert, f"expert {name}", policy, base_tokens),
            _rows_of(expert, f"expert {name}"),
        )
        for name, expert in experts.items()
    }
    root = (base, base_tokens, base_rows)
    first, ids, first_rows = root if donor is None else known[donor]
    title = "the base" if donor is None else f"expert {donor}"
    result = {number: token for number, token in ids.by_id().items() if number < first_rows}
    count = first_rows
    new: list[NewToken] = []
    if policy == "union":
        if max(ids.ids.values(), default=-1) >= first_rows:
            raise UserError(
                f"{title} ({first.path}): its tokenizer has ids beyond its {first_rows} rows and "
                "cannot be extended; choose the vocabulary policy base"
            )
        following = max(ids.ids.values(), default=-1) + 1
        others = known if donor is None else {"base": root, **known}
        appended: set[str] = set()
        for name, (_, tokens, rows) in others.items():
            for token, number in sorted(tokens.ids.items(), key=lambda item: item[1]):
                if token in ids.ids or number >= rows or token in appended:
                    continue
                # The first model that has it gives it its id.
                result[following + len(new)] = token
                new.append(NewToken(token, following + len(new), tokens, name))
                appended.add(token)
        count = max(count, max(result, default=-1) + 1)
    holders: dict[str, list[Holder]] = {}
    wanted = {t for t in result.values() if not base_tokens.ids.get(t, base_rows) < base_rows}
    for expert, tokens, rows in known.values():
        for token, number in tokens.ids.items():
            if token in wanted and number < rows:
                holders.setdefault(token, []).append((expert, number))
    padding = {row: (first, row) for row in range(base_rows, first_rows) if row not in result}

    def reorder(model: Model, tokens: Tokens, rows: int) -> tuple[Model, Rows]:
        plan = _plan(model, tokens, rows, result, count, root, holders, padding)
        return (model if plan.is_identity(rows) else Reordered(model, base, plan)), plan

    aligned, notes = {}, []
    for name, (expert, tokens, rows) in known.items():
        aligned[name], plan = reorder(expert, tokens, rows)
        lacking = int((plan.origin != OWN).sum())
        if aligned[name] is not expert:
            notes.append(
                f"expert {name}: {len(plan.origin) - lacking} of {len(plan.origin)} rows are its "
                f"own, {int((plan.origin == BASE).sum())} the base's, {len(plan.means)} a mean "
                "of the models that have the token."
            )
    changed, plan = reorder(base, base_tokens, base_rows)
    if donor is not None:
        notes.append(f"the tokens have the ids of the donor, expert {donor}.")
    if new:
        notes.append(
            f"{len(new)} tokens that {title} lacks are appended from id {new[0].id} on; a model "
            "without one has the mean of the models with it."
        )
    return Alignment(
        changed,
        aligned,
        count if count != first_rows else None,
        output_tokenizer(first.folders, ids, new),
        tuple(notes),
    )


def align(
    base: Model, experts: Mapping[str, Model], policy: str = "refuse", donor: str | None = None
) -> Alignment:
    """Bring models to one set of names (`checkpoints.settling`) and to one vocabulary by a policy.

    ``refuse``: another tokenizer than the base's is an error. ``base``: the result has the base's
    tokenizer; the experts' rows of embedding and head are put in its order, and rows of tokens
    that an expert lacks are the base's. ``union``: the base's ids stay, and tokens that it lacks
    are appended in the order of the experts and of their ids; a model's row for a token that it
    lacks is the base's, or the mean of the models that have it where the base lacks it too. Rows
    of padding stay, the appended tokens taking the first of them. ``crop-to-base``: experts whose
    first tokens are the base's lose the rows beyond its number, as the authors of DAM did.

    Only embedding and head are touched; a head tied to the embedding follows it. Nothing is read
    before a row is asked for.

    Args:
        base: The common ancestor; for a merge without one, the model in its place, which
            may be among the experts.
        experts: The experts by name.
        policy: See above.
        donor: The expert whose vocabulary takes the base's place in ``base`` and ``union``; None,
            or a name that is no expert's, for the base.

    Returns:
        The models with one vocabulary. The result's configuration and tokenizer must be the
        base's, or the donor's, changed by `Alignment.finish`.

    Raises:
        UserError: The policy is unknown, refuses the models, or cannot be followed with them.
    """
    known = get_args(Policy)
    if policy not in known:
        raise UserError(f"vocabulary policy {policy!r} is unknown{nearest(policy, known)}")
    for model in (base, *experts.values()):
        check_depth(model)
    settled = settle(base, experts)
    base, experts = settled.base, settled.experts
    if policy == "crop-to-base":
        aligned = _crop(base, experts)
    elif policy != "refuse":
        aligned = _match(base, experts, cast(Policy, policy), donor if donor in experts else None)
    else:
        # Under refuse nothing is changed, so that one tokenizer must fit all.
        for name, expert in experts.items():
            check_tokenizer(base, expert, f"expert {name} ({expert.path})")
        aligned = Alignment(base, dict(experts))
    notes = (*(f"{note}." for note in settled.notes), *aligned.notes)
    return dataclasses.replace(aligned, notes=notes)


def check_tokenizer(base: Model, expert: Model, where: str) -> None:
    """Refuse an expert, called `where`, whose tokenizer reads a text otherwise than the base's.

    Raises:
        UserError: They differ; the message says where first.
    """
    what = compare_folders(base.path, expert.path)
    if what:
        raise UserError(
            f"{where} has another tokenizer than the base ({base.path}): {what}; "
            "bring them to one vocabulary (policies base, union, crop-to-base) or leave it out"
        )
