"""An adapter folded into its base, as a folder that a backend can load."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator
from pathlib import Path

from checkpoints.adapters import Adapter, is_adapter
from checkpoints.companions import copy_companions
from checkpoints.reading import Checkpoint
from checkpoints.writing import write_weights
from common.errors import UserError
from common.files import write_json


@contextlib.contextmanager
def folded(base: Path, adapter: Path) -> Iterator[Path]:
    """Fold a PEFT adapter into its base; the folder is removed at the end of the `with` block.

    The tokenizer is the adapter's if its folder has a complete one, or else the base's.

    Raises:
        UserError: The folder is no adapter, or one that does not fit the base; see `Adapter`.
    """
    if not is_adapter(adapter):
        raise UserError(
            f"--adapter {adapter}: no adapter_config.json there; give an adapter's folder, "
            "or a complete model with --model"
        )
    model = Adapter(adapter, Checkpoint(base))
    with tempfile.TemporaryDirectory(prefix="bottle-adapter-") as name:
        folder = Path(name)
        copy_companions(model.folders, folder)
        write_json(folder / "config.json", dict(model.config))
        write_weights(folder, {name: model.load(name).contiguous() for name in model.names()})
        yield folder
