"""The tokenizer that a folder's tokenizer.json describes, whatever class its configuration names.

transformers 5 builds the pipeline of some classes itself, from vocabulary and merges: with
``tokenizer_class: LlamaTokenizer`` it ignores the file's normalizer, pre-tokenizer and decoder, and
spaces or letters beyond ASCII are lost. What is loaded is therefore compared with the file.
"""

from __future__ import annotations

import contextlib
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from checkpoints.layout import REMADE
from common.errors import UserError, reason_of

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerBase

_FILE = "tokenizer.json"
# Scripts, blanks at both ends and in a row, line breaks, digits, signs, what NFKC changes.
_PLAIN = (
    "The cat's price was 1,234.50 in 2024; it's 'done' (really)!",
    " leading",
    "  two leading, two  inside, trailing  ",
    "\tdef f(x):\n\n    return x  # 3\r\n",
    "昨日は雨が降った。カフェで１２３円、㍿と①、ｱｲｳ",
    "오늘은 날씨가 좋다. Ünïcödé größer straße ﬁne e\u0301 naïve",
    "Привет мир, שלום, नमस्ते 🙂👍🏽 \u200b\u00a0x",
    "0.994 and .242 + 3/4 = x^2 & <tag> </s>_▁Ġ ~^[]{}",
    "\n\n\n",
    "a",
)
_said: set[str] = set()


def _probes(own: Tokenizer) -> tuple[list[str], list[str]]:
    """Return texts without and with the tokens that the file adds to its vocabulary."""
    added = [token.content for _, token in sorted(own.get_added_tokens_decoder().items())]
    plain = [text for text in _PLAIN if not any(token in text for token in added)]
    marked = [f"a{token}b {token} c" for token in added[:8]]
    return plain or ["a"], marked


def _alike(tokenizer: PreTrainedTokenizerBase, own: Tokenizer, texts: list[str]) -> bool:
    """Say whether both read texts alike and write them again alike."""
    for text in texts:
        expected = own.encode(text, add_special_tokens=False).ids
        try:
            found = tokenizer.encode(text, add_special_tokens=False)
            written = tokenizer.decode(
                expected, skip_special_tokens=False, clean_up_tokenization_spaces=False
            )
        except Exception:  # a class that misses a token that it needs
            return False
        if found != expected or written != own.decode(expected, skip_special_tokens=False):
            return False
    return True


def as_in_file(
    tokenizer: PreTrainedTokenizerBase, folder: Path | str, **settings: Any
) -> PreTrainedTokenizerBase:
    """Return a loaded tokenizer if it does what tokenizer.json says, or else the file's own.

    Args:
        tokenizer: As transformers loaded it.
        folder: Where from; without a tokenizer.json the tokenizer is returned as it is.
        settings: Of `from_pretrained`.

    Raises:
        UserError: transformers reads the file otherwise than the file says, and in no way right.
    """
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

    path = Path(folder) / _FILE
    # This class takes the file's pipeline as it is.
    if type(tokenizer) is PreTrainedTokenizerFast or not path.is_file():
        return tokenizer
    try:
        own = Tokenizer.from_file(str(path))
    except Exception as error:  # the library has no narrower class
        raise UserError(f"{path}: no tokenizer ({reason_of(error)}); {REMADE}") from None
    own.no_padding()
    own.no_truncation()
    plain, marked = _probes(own)
    reads_plain = _alike(tokenizer, own, plain)
    if reads_plain and _alike(tokenizer, own, marked):
        return tokenizer
    kind = type(tokenizer).__name__
    try:
        other = PreTrainedTokenizerFast.from_pretrained(folder, **settings)
        right = _alike(other, own, plain) and (not reads_plain or _alike(other, own, marked))
    except Exception:  # whatever a wrong configuration makes of it
        right = False
    if not right:
        if reads_plain:  # tokenizer_config.json says more about added tokens than the file
            return tokenizer
        raise UserError(
            f"{path}: transformers' {kind}, named in tokenizer_config.json, reads text otherwise "
            "than this file says; set tokenizer_class to PreTrainedTokenizerFast there"
        )
    return _told(other, path, f"which transformers' {kind} ignores")


def _told(tokenizer: PreTrainedTokenizerBase, path: Path, why: str) -> PreTrainedTokenizerBase:
    """Say once that a file's own pipeline is used, and mark the tokenizer for other loaders."""
    if str(path) not in _said:
        _said.add(str(path))
        print(f"note: {path}: its own pipeline is used, {why}", file=sys.stderr, flush=True)
    tokenizer.of_file = True
    return tokenizer


def file_alone(folder: Path | str, **settings: Any) -> PreTrainedTokenizerBase | None:
    """Load what tokenizer.json describes where the named class cannot; None if that fails too."""
    from transformers import PreTrainedTokenizerFast

    path = Path(folder) / _FILE
    if not path.is_file():
        return None
    try:
        found = PreTrainedTokenizerFast.from_pretrained(folder, **settings)
    except Exception:  # the error of the named class says more
        return None
    return _told(found, path, "which the class of tokenizer_config.json cannot read")


@contextlib.contextmanager
def folder_of(tokenizer: PreTrainedTokenizerBase) -> Iterator[str]:
    """Yield a folder from which another loader reads the same tokenizer."""
    if not getattr(tokenizer, "of_file", False):
        yield tokenizer.name_or_path
        return
    with tempfile.TemporaryDirectory(prefix="bottle-tokenizer-") as folder:
        tokenizer.save_pretrained(folder)
        yield folder
