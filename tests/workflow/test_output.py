"""What `make reproduce` passes on of Snakemake's and its steps' output."""

from __future__ import annotations

import pytest

from workflow.cli import _shown

COMMAND = "Command 'set -euo pipefail; a || ( grep '^error: ' a.log || tail -n 1 a.log ); exit 1'"


@pytest.mark.parametrize(
    "noise",
    [
        f"{COMMAND} returned non-zero exit status 1.",
        "[Mon Nov 30 17:37:16 2026]",
        "Finished jobid: 24 (Rule: evaluate)",
        "Select jobs to execute...",
        "RuleException:",
    ],
)
@pytest.mark.parametrize("said", ["error: the step was killed", "warning: slow", "note: left out"])
def test_what_a_step_says_is_shown_where_snakemake_s_line_has_not_ended(noise, said):
    assert _shown(f"{noise}\n") == ""
    assert _shown(f"{noise}{said}\n") == f"{said}\n"
    assert _shown(f"{said}\n") == f"{said}\n"


def test_other_lines_are_shown_as_they_are():
    for line in ("7 of 31 steps (23%) done\n", "merged de, ko with dam into o\n"):
        assert _shown(line) == line
    assert _shown("\n") == ""


def test_snakemake_writes_a_message_and_its_end_separately():
    """The reason for the above; without it, it could go."""
    import logging

    from snakemake.logging import ColorizingTextHandler

    written = []

    class Stream:
        def write(self, text):
            written.append(text)

        def flush(self):
            pass

    handler = ColorizingTextHandler(nocolor=True, stream=Stream())
    handler.emit(logging.LogRecord("a", logging.ERROR, "", 1, "one\ntwo", None, None))
    assert written[-2:] == ["one\ntwo", "\n"]
