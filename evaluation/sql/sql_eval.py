"""SQL-Eval: its engines, its prompts and its judge, opened for a run.

Rows are those of the converted data: `id`, `db_name`, `query_category`, and `question`, `query`,
`instructions` for PostgreSQL, with the same three for SQLite under `sqlite`.
"""

from __future__ import annotations

import contextlib
import tempfile
from pathlib import Path
from typing import Any

from common.errors import UserError
from evaluation.sql import (
    comparison_corrected,
    comparison_published,
    databases,
    extraction,
    gold,
    sqlite,
)
from evaluation.sql.engines import Compared, Engine, Match, Refused, Result, Verdict
from evaluation.sql.prompts import Prompts

ENGINES = ("sqlite", "postgres")
MAX_CELLS = 50_000  # of a result that is compared; the largest gold result has some dozens
MAX_ANSWER = 40_000  # characters; 1,000 tokens have some thousands

# More room than the bottle's queries get, and a step limit that comes before SQL-Eval's 10 s.
SQLITE_LIMITS = sqlite.Limits(
    steps=20_000_000, seconds=10.0, statement=20_000, depth=200, compound=50
)


class SqliteEngine:
    """Runs hostile queries on SQLite files built from a folder's dumps; see `Engine`."""

    name = "sqlite"

    def __init__(self, dumps: Path, limits: sqlite.Limits = SQLITE_LIMITS) -> None:
        self._dumps = dumps
        self._limits = limits
        self._folder = tempfile.TemporaryDirectory(prefix="bottle-sqlite-")
        self._build()

    def _build(self) -> None:
        now = databases.utc_now()
        self._day = now.date()
        self.files = databases.build_sqlite(self._dumps, Path(self._folder.name), now)

    def execute(self, database: str, statement: str) -> Result:
        """Run one statement that may only read; see `Engine`."""
        if database not in self.files:
            raise UserError(f"no database named {database!r}; convert the data again")
        return sqlite.execute(self.files[database], statement, self._limits)

    def refresh(self) -> bool:
        """Build the databases again if they were built on another day; say whether."""
        if databases.utc_now().date() == self._day:
            return False
        self._build()
        return True

    def close(self) -> None:
        """Remove the databases."""
        self._folder.cleanup()


class SqlEvalJudge:
    """Judges queries on an engine by SQL-Eval's rules, published or corrected."""

    def __init__(self, engine: Engine, fidelity: str) -> None:
        self._engine = engine
        self._published = fidelity == "published"
        self._gold: dict[tuple[str, str], Result | Refused] = {}

    def judge(self, answer: str, row: dict[str, Any]) -> Verdict:
        """Run an answer to a row and compare what it returns with every gold alternative.

        A query that fails or is stopped is wrong.

        Raises:
            UserError: The database is missing or, under corrected, a gold query fails.
        """
        if self._engine.refresh():
            self._gold.clear()
        if len(answer) > MAX_ANSWER:
            return Verdict(False, f"stopped: more than {MAX_ANSWER} characters", "")
        extract = extraction.published if self._published else extraction.corrected
        statement = extract(answer)
        if not statement:
            return Verdict(False, "no statement", statement)
        try:
            result = self._engine.execute(row["db_name"], statement)
            if len(result.rows) * len(result.columns) > MAX_CELLS:
                raise Refused(f"stopped: more than {MAX_CELLS} values")
            match = self._match(result, statement, row)
        except Refused as error:
            return Verdict(False, str(error), statement)
        return Verdict(
            match.correct, "correct" if match.correct else "wrong", statement, match.exact
        )

    def _match(self, result: Result, statement: str, row: dict[str, Any]) -> Match:
        view = dialect_of(row, self._engine.name)
        expand = gold.published if self._published else gold.corrected
        best = Match(False, False)
        for alternative in expand(view["query"]):
            pair = Compared(
                self._gold_result(row, alternative),
                result,
                row["query_category"],
                view["question"],
                view["query"] if self._published else alternative,
                statement,
                self._engine.name,
            )
            match = self._compare(pair)
            if match.exact:
                return match
            best = match if match.correct else best
        return best

    def _compare(self, pair: Compared) -> Match:
        if not self._published:
            return comparison_corrected.compare(pair)
        try:
            return comparison_published.compare(pair)
        except Exception as error:
            # The published runner books whatever pandas raises as a failed execution.
            reason = str(error).partition("\n")[0]
            raise Refused(f"failed: comparison: {type(error).__name__}: {reason}") from None

    def _gold_result(self, row: dict[str, Any], query: str) -> Result:
        key = (row["db_name"], query)
        if key not in self._gold:
            try:
                self._gold[key] = self._engine.execute(*key)
            except Refused as error:
                self._gold[key] = error
        found = self._gold[key]
        if isinstance(found, Result):
            return found
        if self._published:  # a fault of the published rule: its own gold query may fail
            raise Refused(f"failed: gold query: {found}")
        raise UserError(
            f"item {row.get('id')}: gold query {query!r} {found}; convert the data again"
        )


def dialect_of(row: dict[str, Any], engine: str) -> dict[str, Any]:
    """Return a row's question, query and instructions for an engine."""
    return row["sqlite"] if engine == "sqlite" else row


class SqlEval:
    """SQL-Eval opened for a run: databases loaded fresh, prompts and judges at hand.

    Args:
        dumps: Folder with `<database>.sql` and `<database>.json`.
        engine: sqlite or postgres.
        postgres: Folder of a server started by hand; without it a server is started, and stopped by
            `close`.

    Raises:
        UserError: No such engine, the data are missing, or PostgreSQL is.
    """

    def __init__(self, dumps: Path, engine: str = "sqlite", postgres: Path | None = None) -> None:
        if engine not in ENGINES:
            raise UserError(f"no SQL engine named {engine!r}; take one of: {', '.join(ENGINES)}")
        with contextlib.ExitStack() as opening:
            if engine == "sqlite":
                self.engine: Engine = SqliteEngine(dumps)
            else:
                self.engine = self._open_postgres(dumps, postgres, opening)
            opening.callback(self.engine.close)
            self._resources = opening.pop_all()
        self._prompts = Prompts(dumps, engine)
        self._judges: dict[str, SqlEvalJudge] = {}

    def _open_postgres(
        self, dumps: Path, folder: Path | None, opening: contextlib.ExitStack
    ) -> Engine:
        from evaluation.sql import server
        from evaluation.sql.postgres import PostgresEngine, alone

        if folder is None:
            return PostgresEngine(opening.enter_context(server.temporary()), dumps)
        running = server.status(folder)
        if running is None:
            raise UserError(
                f"{folder}: no PostgreSQL server runs from here; start it "
                f"(python -m evaluation postgres start --dir {folder})"
            )
        opening.enter_context(alone(running))
        return PostgresEngine(running, dumps)

    def prompt(self, row: dict[str, Any]) -> str:
        """Build a row's prompt."""
        view = dialect_of(row, self.engine.name)
        return self._prompts(row["db_name"], view["question"], view["instructions"])

    def judge(self, answer: str, row: dict[str, Any], fidelity: str) -> Verdict:
        """Judge an answer; see `SqlEvalJudge.judge`."""
        if fidelity not in self._judges:
            self._judges[fidelity] = SqlEvalJudge(self.engine, fidelity)
        return self._judges[fidelity].judge(answer, row)

    def close(self) -> None:
        """Remove the databases and stop the run's own server."""
        self._resources.close()
