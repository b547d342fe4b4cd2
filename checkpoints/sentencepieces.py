"""The tokenizer of a folder that has a SentencePiece file and no tokenizer.json.

transformers 5 reads such a file otherwise than SentencePiece does: it drops a leading blank, or the
blank in front of a text, or all blanks, by the class that is named. So the pipeline is built here
from the file: normalizer, blank in front, pieces by score.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from checkpoints.companions import LARGEST, copy_tokenizer
from checkpoints.layout import read_object
from common.errors import UserError, reason_of
from common.files import write_json

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerBase

FILE = "tokenizer.model"
_CONFIG = "tokenizer_config.json"
# Classes that count tokens as the file does; others put further ones in front.
_CLASSES = ("", "Llama", "CodeLlama", "Gemma", "PreTrained", "TokenizersBackend")
_UNIGRAM, _BPE = 1, 2  # kinds of models
_CONTROL, _USER = 3, 4  # kinds of pieces
_BLANK = "▁"
_LONGEST = 1000  # letters of a piece; the work grows with their square, and real ones have 64


def _model_of(path: Path) -> Any:
    """Parse a SentencePiece file; None where it is something else, such as a list of ranks."""
    from transformers.convert_slow_tokenizer import import_protobuf

    if path.stat().st_size > LARGEST:
        raise UserError(f"{path}: over {LARGEST >> 20} MiB, no tokenizer; fetch the file again")
    model = import_protobuf().ModelProto()
    try:
        model.ParseFromString(path.read_bytes())
    except Exception:  # protobuf's own class, whose module depends on how it was built
        return None
    known = model.trainer_spec.model_type in (_UNIGRAM, _BPE) and all(
        0 < len(piece.piece) <= _LONGEST for piece in model.pieces
    )
    return model if model.pieces and known else None


def _normalizer(spec: Any) -> Any:
    from tokenizers import Regex, normalizers

    steps: list[Any] = []
    if spec.precompiled_charsmap:
        steps.append(normalizers.Precompiled(spec.precompiled_charsmap))
    if spec.remove_extra_whitespaces:
        steps += [normalizers.Strip(), normalizers.Replace(Regex(" {2,}"), " ")]
    if spec.add_dummy_prefix:
        steps.append(normalizers.Prepend(_BLANK))
    return normalizers.Sequence([*steps, normalizers.Replace(" ", _BLANK)])


def pipeline(model: Any) -> Tokenizer:
    """Build the pipeline that a parsed SentencePiece file describes, a token for each piece."""
    from tokenizers import AddedToken, Tokenizer, decoders, models
    from transformers.tokenization_utils_base import generate_merges

    pieces, spec = list(model.pieces), model.trainer_spec
    unknown = spec.unk_id if 0 <= spec.unk_id < len(pieces) else None
    if spec.model_type == _UNIGRAM:
        scored = [(piece.piece, piece.score) for piece in pieces]
        words: Any = models.Unigram(scored, unk_id=unknown, byte_fallback=spec.byte_fallback)
    else:
        ids = {piece.piece: number for number, piece in enumerate(pieces)}
        # SentencePiece applies merges by the score of the piece that each makes.
        scores = {piece.piece: piece.score for piece in pieces}
        whole = {piece.piece for piece in pieces if piece.type == _CONTROL}
        words = models.BPE(
            vocab=ids,
            merges=generate_merges(ids, scores, whole),
            unk_token=None if unknown is None else pieces[unknown].piece,
            fuse_unk=True,
            byte_fallback=spec.byte_fallback,
        )
    tokenizer = Tokenizer(words)
    tokenizer.normalizer = _normalizer(model.normalizer_spec)
    after = [decoders.Replace(_BLANK, " "), decoders.ByteFallback(), decoders.Fuse()]
    if model.normalizer_spec.add_dummy_prefix:
        after.append(decoders.Strip(content=" ", left=1))
    tokenizer.decoder = decoders.Sequence(after)
    for piece in pieces:
        if piece.type in (_CONTROL, _USER) and piece.piece.strip(_BLANK):
            special = piece.type == _CONTROL
            tokenizer.add_tokens([AddedToken(piece.piece, normalized=False, special=special)])
    return tokenizer


def _surround(tokenizer: Tokenizer, about: dict[str, Any], kind: str, spec: Any) -> None:
    """Put the tokens around a text that the configuration asks for, or else the class."""
    from tokenizers import processors

    begins = about.get("add_bos_token", kind != "") and spec.bos_id >= 0
    ends = about.get("add_eos_token", False) and spec.eos_id >= 0
    named = [(tokenizer.id_to_token(n), n) for n in (spec.bos_id, spec.eos_id) if n >= 0]
    before, after = [named[0][0]] if begins else [], [named[-1][0]] if ends else []
    second = [f"{part}:1" for part in (*before, "$B", *after)]
    tokenizer.post_processor = processors.TemplateProcessing(
        single=[*before, "$A", *after],
        pair=[*before, "$A", *after, *second],
        special_tokens=named,
    )


def of_pieces(folder: Path | str, **settings: Any) -> PreTrainedTokenizerBase | None:
    """Load the tokenizer that a folder's tokenizer.model describes.

    Args:
        folder: The folder; where it has a tokenizer.json, or no SentencePiece file whose tokens
            count as its pieces do, nothing is done.
        settings: Of `from_pretrained`.

    Raises:
        UserError: The file is damaged.
    """
    from transformers import PreTrainedTokenizerFast

    folder = Path(folder)
    path = folder / FILE
    if (folder / "tokenizer.json").is_file() or not path.is_file():
        return None
    about = read_object(folder / _CONFIG) if (folder / _CONFIG).is_file() else {}
    kind = str(about.get("tokenizer_class") or "").removesuffix("Fast").removesuffix("Tokenizer")
    model = _model_of(path) if kind in _CLASSES else None
    if model is None:
        return None
    spec = model.trainer_spec
    try:
        tokenizer = pipeline(model)
        _surround(tokenizer, about, kind, spec)
    except Exception as error:  # whatever a damaged vocabulary makes of it
        raise UserError(
            f"{path}: no tokenizer ({reason_of(error)}); fetch the file again"
        ) from None
    usual = {
        f"{name}_token": model.pieces[number].piece
        for name in ("bos", "eos", "unk", "pad")
        if 0 <= (number := getattr(spec, f"{name}_id")) < len(model.pieces)
    }
    # transformers reads the rest, as templates and added tokens, from a folder of the fast form.
    with tempfile.TemporaryDirectory(prefix="bottle-pieces-") as name:
        made = Path(name)
        copy_tokenizer(folder, made)
        (made / FILE).unlink(missing_ok=True)
        tokenizer.save(str(made / "tokenizer.json"))
        write_json(made / _CONFIG, {**usual, **about, "tokenizer_class": "PreTrainedTokenizerFast"})
        found = PreTrainedTokenizerFast.from_pretrained(made, **settings)
    found.name_or_path = str(folder)
    found.of_file = True
    return found
