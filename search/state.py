"""An unfinished search on disk: written after every candidate, resumed after a kill."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from common.errors import UserError
from common.files import read_json, sha256_json, write_text
from search.evaluation import Evaluation


@dataclass
class State:
    """All that a search depends on from here on.

    Attributes:
        strategy: The strategy's state before it was asked for the present generation.
        reported: Number of evaluations whose averages the strategy has.
        evaluations: All so far by index; those from `reported` on are of the present generation.
        wall_s: Seconds spent so far, in all runs of this search.
        cpu_s: CPU seconds likewise.
    """

    strategy: dict[str, Any] | None = None
    reported: int = 0
    evaluations: dict[int, Evaluation] = field(default_factory=dict)
    wall_s: float = 0.0
    cpu_s: float = 0.0


class StateFile:
    """A search's state in a folder next to its result, written atomically.

    Args:
        out: The result's folder; the state's is named after it, with ``.search``.
        configuration: What must be unchanged for a search to resume: plain values.
    """

    def __init__(self, out: Path, configuration: Mapping[str, Any]) -> None:
        out = out.resolve()
        self.folder = out.with_name(f"{out.name}.search")
        self.path = self.folder / "state.json"
        self._configuration = json.loads(json.dumps(configuration))

    def load(self) -> State | None:
        """Return the state, None where none is kept.

        Raises:
            UserError: It is damaged, or another search's.
        """
        if not self.path.is_file():
            return None
        content = read_json(self.path)
        remedy = f"remove {self.folder} to begin anew"
        try:
            if content.pop("sha256") != sha256_json(content):
                raise UserError(f"{self.path}: was changed or damaged; {remedy}")
            held = content.pop("configuration")
            evaluations = [Evaluation(**entry) for entry in content.pop("evaluations")]
            state = State(**content, evaluations={item.index: item for item in evaluations})
        except (AttributeError, KeyError, TypeError):
            raise UserError(f"{self.path}: not the state of a search; {remedy}") from None
        if held != self._configuration:
            keys = sorted(
                key
                for key in {*held, *self._configuration}
                if held.get(key) != self._configuration.get(key)
            )
            raise UserError(
                f"{self.folder} holds an unfinished search with another {' and '.join(keys)}; "
                f"give what it was begun with, or {remedy}"
            )
        return state

    def save(self, state: State) -> None:
        """Write the state; the earlier one stays where this fails.

        Raises:
            UserError: The disk is full.
        """
        content = vars(state) | {
            "configuration": self._configuration,
            "evaluations": [
                asdict(state.evaluations[index]) for index in sorted(state.evaluations)
            ],
        }
        content = json.loads(json.dumps(content))
        content["sha256"] = sha256_json(content)
        # Python writes floats with all their digits, so that they are read back exactly.
        write_text(self.path, json.dumps(content, ensure_ascii=False) + "\n")

    def remove(self) -> None:
        """Remove the state of a finished search."""
        shutil.rmtree(self.folder, ignore_errors=True)
