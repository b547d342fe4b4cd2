"""The symmetry group of a decoder: what changes the weights and not the function.

A pre-norm decoder computes the same after any of these changes, for every layer by itself but for
the residual stream, which is one for the complete model (skip connections share its basis):

- MLP: a permutation of the hidden units (rows of gate and up, columns of down), and in a gated MLP
  a factor of a unit's row of up with the inverse in its column of down. The gate's row has none:
  its activation is not linear.
- Values and outputs: for each group of heads with common keys and values an invertible matrix M,
  V -> M V and O -> O M^-1, the same for all query heads of the group.
- Queries and keys with rotary positions: for each group and frequency a complex number z on the
  pair (i, i + rotary / 2) of the keys, and 1 / conj(z) on that of the group's queries. Dimensions
  that are not rotated take any invertible matrix, with its transposed inverse on the queries. Where
  queries and keys are normalised, only z = 1 and z = -1 are left, and one factor for each pair that
  goes from the layer's gain of the keys to that of the queries.
- Heads: a permutation of query heads within their group, and of complete groups.
- Residual stream: a permutation with signs (the mean in a LayerNorm leaves no signs). Any rotation,
  if every gain is first moved into the matrices that read the norm. A head that is tied to the
  embedding has no separate place for the last gain, and gains behind a sub-layer cannot be moved.

Biases follow the rows of their matrices, and caps on scores or logits see no difference.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from checkpoints.architecture import parsed
from common.errors import UserError

RESIDUAL = "residual"


@dataclass(frozen=True)
class Family:
    """What differs between the decoders that are known.

    Attributes:
        norm: ``rms``, or ``layer`` for one that subtracts the mean.
        offset: What the norms add to their gains.
        sandwich: Whether gains follow each sub-layer too.
        normalised: Whether queries and keys are normalised.
        gated: Whether the MLP has a gate.
        fused: Whether query, key and value are one matrix, by head.
    """

    norm: str = "rms"
    offset: float = 0.0
    sandwich: bool = False
    normalised: bool = False
    gated: bool = True
    fused: bool = False


FAMILIES: Mapping[str, Family] = {
    "llama": Family(),
    "mistral": Family(),
    "qwen2": Family(),
    "qwen3": Family(normalised=True),
    "gemma": Family(offset=1.0),
    "gemma2": Family(offset=1.0, sandwich=True),
    "gemma3_text": Family(offset=1.0, sandwich=True, normalised=True),
    "gpt_neox": Family(norm="layer", gated=False, fused=True),
}


@dataclass(frozen=True)
class Slot:
    """How a tensor, or one part of a fused one, is moved.

    Attributes:
        rows: The space of its rows (of a vector: its values); None if nothing moves them.
        columns: The space of its columns.
        gain: Whether it is a norm's gain of the residual stream, which has no sign.
        offset: What is added to a gain before it acts.
        part: Which of three parts of a fused matrix it is; None for all of the tensor.
        reads: The gain that scales the matrix's input, which folding moves into it.
    """

    rows: str | None = None
    columns: str | None = None
    gain: bool = False
    offset: float = 0.0
    part: int | None = None
    reads: str | None = None


@dataclass(frozen=True)
class Group:
    """The symmetry group of one configuration.

    Attributes:
        family: What kind of decoder it is.
        kind: Its model type.
        width: Values of the residual stream.
        layers: Number of layers.
        heads: Query heads of a layer.
        groups: Heads of keys and values, each with the same number of query heads.
        head: Values of a head.
        rotary: Those of them that are rotated.
        hidden: Hidden units of the MLP.
        tied: Whether the output head is the embedding.
    """

    family: Family
    kind: str
    width: int
    layers: int
    heads: int
    groups: int
    head: int
    rotary: int
    hidden: int
    tied: bool

    @property
    def signs(self) -> bool:
        """Whether the residual stream's values may change their signs."""
        return self.family.norm == "rms"

    @property
    def foldable(self) -> bool:
        """Whether gains can be moved into matrices, after which the stream may be rotated."""
        return self.family.norm == "rms" and not self.family.sandwich and not self.tied

    def units(self, space: str) -> tuple[int, int]:
        """Return how many units a space has, and of how many values each is."""
        name = space.split(".")[0]
        return {
            RESIDUAL: (self.width, 1),
            "gate": (self.hidden, 1),
            "up": (self.hidden, 1),
            "keys": (self.groups, self.head),
            "values": (self.groups, self.head),
            "queries": (self.heads, self.head),
            "outputs": (self.heads, self.head),
            "key_gain": (1, self.head),
            "query_gain": (1, self.head),
        }[name]

    def slots(self) -> dict[str, tuple[Slot, ...]]:
        """Return the slots of every tensor that such a model may have, biases included."""
        found = _neox(self) if self.family.fused else _llama(self)
        return {name: own if isinstance(own, tuple) else (own,) for name, own in found.items()}

    def describe(self) -> list[str]:
        """Say what the group is of, a line for each part, and what does not hold here."""
        family, ratio = self.family, self.heads // self.groups
        gated = "with factors of up and down" if family.gated else "no factors (no gate)"
        if family.normalised:
            turn = "signs of pairs (queries and keys are normalised), factors between their gains"
        else:
            turn = f"a complex number for each of {self.rotary // 2} frequencies"
            if self.rotary < self.head:
                turn += f", any matrix on the other {self.head - self.rotary} values"
        stream = "permutations with signs" if self.signs else "permutations (LayerNorm: no signs)"
        if self.foldable:
            stream += "; rotations once gains are folded"
        else:
            why = {"layer": "LayerNorm"}.get(family.norm) or (
                "gains behind sub-layers" if family.sandwich else "tied head"
            )
            stream += f"; no rotations ({why})"
        return [
            f"hidden units: permutations of {self.hidden}, {gated}",
            f"values and outputs: any matrix of {self.head} x {self.head} for each key-value head",
            f"queries and keys: {turn}",
            f"heads: permutations of {ratio} within a group, and of {self.groups} groups",
            f"residual stream: {stream}",
        ]


def _llama(group: Group) -> dict[str, Any]:
    """Return the slots under the names of Llama and its relatives."""
    # Long because it lists all that a layer has.
    family, stream = group.family, RESIDUAL
    gain = Slot(rows=stream, gain=True, offset=family.offset)
    found: dict[str, Any] = {
        "model.embed_tokens.weight": Slot(columns=stream),
        "model.norm.weight": gain,
        "lm_head.weight": Slot(columns=stream, reads="model.norm.weight"),
        "lm_head.bias": Slot(),
    }
    for n in range(group.layers):
        top, before = f"model.layers.{n}", f"model.layers.{n}.input_layernorm.weight"
        after = "pre_feedforward_layernorm" if family.sandwich else "post_attention_layernorm"
        norms = ["input_layernorm", "post_attention_layernorm"]
        if family.sandwich:
            norms += ["pre_feedforward_layernorm", "post_feedforward_layernorm"]
        found |= {f"{top}.{norm}.weight": gain for norm in norms}
        if family.normalised:
            for which in ("query", "key"):
                own = Slot(rows=f"{which}_gain.{n}", offset=family.offset)
                found[f"{top}.self_attn.{which[0]}_norm.weight"] = own
        reading = {
            "self_attn.q_proj": (f"queries.{n}", before),
            "self_attn.k_proj": (f"keys.{n}", before),
            "self_attn.v_proj": (f"values.{n}", before),
            "mlp.gate_proj": (f"gate.{n}", f"{top}.{after}.weight"),
            "mlp.up_proj": (f"up.{n}", f"{top}.{after}.weight"),
        }
        writing = {"self_attn.o_proj": f"outputs.{n}", "mlp.down_proj": f"up.{n}"}
        for module, (rows, reads) in reading.items():
            found[f"{top}.{module}.weight"] = Slot(rows, stream, reads=reads)
            found[f"{top}.{module}.bias"] = Slot(rows)
        for module, columns in writing.items():
            found[f"{top}.{module}.weight"] = Slot(stream, columns)
            found[f"{top}.{module}.bias"] = Slot(stream)
    return found


def _neox(group: Group) -> dict[str, Any]:
    """Return the slots under the names of GPT-NeoX, whose heads have query, key and value fused."""
    stream = RESIDUAL
    found: dict[str, Any] = {
        "gpt_neox.embed_in.weight": Slot(columns=stream),
        "embed_out.weight": Slot(columns=stream),  # in files
        "lm_head.weight": Slot(columns=stream),  # in transformers' class
    }
    norms = ["gpt_neox.final_layer_norm"]
    for n in range(group.layers):
        top = f"gpt_neox.layers.{n}"
        norms += [f"{top}.input_layernorm", f"{top}.post_attention_layernorm"]
        fused = (f"queries.{n}", f"keys.{n}", f"values.{n}")
        for leaf, columns in (("weight", stream), ("bias", None)):
            found[f"{top}.attention.query_key_value.{leaf}"] = tuple(
                Slot(rows, columns, part=part) for part, rows in enumerate(fused)
            )
            outputs, up = (f"outputs.{n}", f"up.{n}") if columns else (None, None)
            found[f"{top}.attention.dense.{leaf}"] = Slot(stream, outputs)
            found[f"{top}.mlp.dense_h_to_4h.{leaf}"] = Slot(f"up.{n}", columns)
            found[f"{top}.mlp.dense_4h_to_h.{leaf}"] = Slot(stream, up)
    found |= {f"{norm}.weight": Slot(rows=stream, gain=True) for norm in norms}
    found |= {f"{norm}.bias": Slot(rows=stream) for norm in norms}
    return found


def group_of(config: Mapping[str, Any], names: Collection[str], where: object) -> Group:
    """Return the symmetry group of a model.

    Args:
        config: Its configuration.
        names: Its tensors.
        where: What to call it in messages.

    Raises:
        UserError: The architecture is not known, or a tensor has no place in it.
    """
    kind = str(config.get("model_type"))
    built = parsed(config)
    if kind not in FAMILIES or built is None:
        raise UserError(
            f"{where}: alignment knows the architectures {', '.join(FAMILIES)}, not {kind!r}; "
            "merge it without --align"
        )
    about: Any = built
    heads, width = about.num_attention_heads, about.hidden_size
    head = getattr(about, "head_dim", None) or width // heads
    share = (getattr(about, "rope_parameters", None) or {}).get("partial_rotary_factor", 1.0)
    group = Group(
        family=FAMILIES[kind],
        kind=kind,
        width=width,
        layers=about.num_hidden_layers,
        heads=heads,
        groups=getattr(about, "num_key_value_heads", None) or heads,
        head=head,
        rotary=int(head * share) if FAMILIES[kind].fused else head,
        hidden=about.intermediate_size,
        tied=not {"lm_head.weight", "embed_out.weight"} & set(names),
    )
    if unknown := sorted(set(names) - set(group.slots())):
        raise UserError(
            f"{where}: alignment does not know where {unknown[0]} of a {kind!r} model belongs; "
            "merge it without --align"
        )
    return group
