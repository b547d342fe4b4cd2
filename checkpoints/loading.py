"""Loading a model with transformers, which fills in random values where a checkpoint has none."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from checkpoints.architecture import QUANTISED, says_quantised
from checkpoints.layout import REMADE, read_object
from checkpoints.names import is_head, text_part
from checkpoints.reading import Checkpoint, Model
from checkpoints.sentencepieces import of_pieces
from checkpoints.stored import TIE
from checkpoints.tokenizers_own import as_in_file, file_alone
from common.errors import UserError, reason_of

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

# How configurations call the number of their layers.
DEPTHS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers")
_STACKS = ("layers", "h", "blocks", "block", "layer")


def refuse_invented(where: Path, missing: Iterable[str], unexpected: Iterable[str]) -> None:
    """Refuse weights that were not read, or not used.

    Args:
        where: The model's folder.
        missing: Parameters of the architecture that the checkpoint lacks, without those that the
            architecture ties or declares to be dispensable.
        unexpected: Tensors of the checkpoint that the architecture has no place for, likewise.

    Raises:
        UserError: There is one.
    """
    kinds = (
        (missing, "has no weights for", "random values would take their place"),
        (unexpected, "holds", "config.json describes a model without this"),
    )
    for names, verb, why in kinds:
        if found := sorted(names):
            more = f" and {len(found) - 2} more" if len(found) > 2 else ""
            raise UserError(f"{where}: {verb} {', '.join(found[:2])}{more}; {why}: {REMADE}")


def load_tokenizer(folder: Path | str, remedy: str = "") -> PreTrainedTokenizerBase:
    """Load a folder's tokenizer; nothing is fetched, and no code that comes with it runs.

    It reads text as tokenizer.json says, whatever class tokenizer_config.json names, or without
    one as a SentencePiece file says.

    Args:
        folder: The model's folder.
        remedy: What else the user can do, for the message.

    Raises:
        UserError: There is none that transformers can read.
    """
    from transformers import AutoTokenizer

    settings = {"local_files_only": True}
    if (made := of_pieces(folder, **settings)) is not None:
        return made
    try:
        found = AutoTokenizer.from_pretrained(folder, trust_remote_code=False, **settings)
    except Exception as error:  # whatever a missing or a damaged file makes of it
        if (own := file_alone(folder, **settings)) is not None:
            return own
        has = (Path(folder) / "tokenizer.json").is_file()
        what = "copy the model's there again" if has else "fetch the model's tokenizer.json"
        raise UserError(
            f"{folder}: no tokenizer that transformers can read ({reason_of(error)}); {what}"
            f"{remedy}"
        ) from None
    return as_in_file(found, folder, **settings)


def load_causal(folder: Path | str, **settings: Any) -> PreTrainedModel:
    """Load a causal language model, all of whose weights are in its folder and are used.

    Args:
        folder: The model's folder; nothing is fetched.
        settings: Of transformers' `from_pretrained`, such as ``dtype``.

    Raises:
        UserError: The folder is not a model, transformers cannot load it, or it lacks a weight or
            has one too many, but for those that the architecture ties or declares.
    """
    from transformers.utils import logging

    model_folder = Checkpoint(folder)  # says what is damaged in plainer words than transformers
    # No progress, and no table of missing weights, which the error below says in a line.
    logging.disable_progress_bar()
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        if not says_quantised(model_folder.config):
            settings |= _without_leftover(folder)
        model, info = _class_of(model_folder).from_pretrained(
            folder,
            local_files_only=True,
            trust_remote_code=False,  # without it transformers asks whoever sits at the terminal
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # refused below, by name
            **settings,
        )
    except Exception as error:  # whatever a wrong configuration makes of it
        raise UserError(
            f"{folder}: transformers cannot load it ({reason_of(error)}); {REMADE}"
        ) from None
    finally:
        logging.set_verbosity(verbosity)
    for name, stored, built in sorted(info["mismatched_keys"]):
        raise UserError(
            f"{folder}: {name} has the shape {list(stored)}, its config.json makes it "
            f"{list(built)}; {REMADE}"
        )
    refuse_invented(Path(folder), info["missing_keys"], info["unexpected_keys"])
    if model_folder.config.get(TIE) is False:  # transformers keeps a head that differs, and says so
        model.config.tie_word_embeddings = False
    return model


def _without_leftover(folder: Path | str) -> dict[str, Any]:
    """Return a setting that hides a leftover block on quantisation; none where there is none."""
    if not says_quantised(read_object(Path(folder) / "config.json")):
        return {}
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    for part in (config, config.get_text_config()):
        if hasattr(part, QUANTISED):
            delattr(part, QUANTISED)
    return {"config": config}


def _class_of(checkpoint: Checkpoint) -> Any:
    """Choose the class that builds a model which continues text, a wrapper for pictures too."""
    from transformers import AutoModelForCausalLM, AutoModelForImageTextToText
    from transformers.models.auto import modeling_auto as known

    kind = checkpoint.config.get("model_type")
    shows = kind in known.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES
    if shows and kind not in known.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        return AutoModelForImageTextToText
    return AutoModelForCausalLM


def check_weights(folder: Path | str) -> None:
    """Compare a folder's weights with its architecture, for loaders other than transformers'.

    No value is read. Raises as `load_causal`.
    """
    load_causal(folder, device_map="meta")


def _depth(config: Mapping[str, Any]) -> int | None:
    about = text_part(config) or config
    found = next((about[key] for key in DEPTHS if key in about), None)
    return found if isinstance(found, int) else None


def check_depth(model: Model) -> None:
    """Refuse a model with other layers than its configuration counts, or without an output head.

    What can be known without transformers, which a merge does not import. A model with several
    stacks of layers, such as one with an encoder, is left alone.

    Raises:
        UserError: A layer or the head is missing, or a layer is one too many.
    """
    stacks: dict[str, set[int]] = {}
    for name in model.names():
        parts = name.split(".")
        place = next((n for n, part in enumerate(parts) if part.isdecimal()), 0)
        if place and parts[place - 1] in _STACKS:
            stacks.setdefault(".".join(parts[:place]), set()).add(int(parts[place]))
    depth = _depth(model.config)
    if depth is None or len(stacks) != 1:
        return
    ((stack, held),) = stacks.items()
    # Layers that predict further tokens are stored behind the others and are not counted.
    beyond = model.config.get("num_nextn_predict_layers") or 0
    refuse_invented(
        model.path,
        [f"{stack}.{number}" for number in sorted(set(range(depth)) - held)[:1]],
        [f"{stack}.{number}" for number in sorted(held - set(range(depth + beyond)))[:1]],
    )
    speaks = any(str(c).endswith("ForCausalLM") for c in model.config.get("architectures") or ())
    untied = model.config.get("tie_word_embeddings") is False
    if speaks and untied and not any(map(is_head, model.names())):
        refuse_invented(model.path, ["the output head (lm_head)"], [])
