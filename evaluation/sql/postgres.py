"""PostgreSQL for hostile queries.

A query runs as a role that may only SELECT, on a fresh connection, in a read-only transaction that
is always rolled back, through a server-side cursor: the server itself then admits one query and
nothing else (DECLARE CURSOR), and rows come one at a time, so that neither side buffers more than
a few. The server stops a query that takes long; a watchdog on a second connection, of another
role, stops one that got around that. Functions whose value or effect is more than their arguments'
(pg_sleep, set_config, lo_create, pg_terminate_backend, random ...) are taken from the role.

No parser of ours reads the hostile text: parsers are open to attack too (nesting, for one).
"""

from __future__ import annotations

import contextlib
import os
import re
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg
from psycopg import sql
from psycopg.types.string import TextLoader

from common.errors import UserError
from evaluation.sql import databases
from evaluation.sql.engines import UNREADABLE, Refused, Result, row_size
from evaluation.sql.server import OWNER, READER, WATCHDOG, Server


class _Lost(Refused):
    """The connection broke while a query ran."""


@dataclass(frozen=True)
class Limits:
    """Bounds on a query.

    Attributes:
        seconds: After which the server stops it; SQL-Eval's own limit.
        grace: Seconds more, after which the watchdog does.
        rows: Rows of the result.
        bytes: Characters or bytes of one row.
        statement: Characters of the statement.
    """

    seconds: float = 10.0
    grace: float = 1.0
    rows: int = 1_000
    bytes: int = 100_000
    statement: int = 20_000


_ROLE_SETTINGS = {
    "default_transaction_read_only": "on",
    "lock_timeout": "1s",
    "idle_in_transaction_session_timeout": "60s",
    "work_mem": "16MB",
    "hash_mem_multiplier": "1",
    "temp_file_limit": "64MB",
    "max_parallel_workers_per_gather": "0",
}

_RESTARTING = re.compile(
    "starting up|recovery mode|not yet accepting|shutting down|closed the connection|crash of"
)
_RESTART_SECONDS = 30.0

# Volatile functions reach outside the query, or their value differs between two runs.
_TAKE_VOLATILE = """
DO $$
DECLARE f regprocedure;
BEGIN
  FOR f IN SELECT oid::regprocedure FROM pg_proc WHERE provolatile = 'v' LOOP
    EXECUTE format('REVOKE EXECUTE ON ROUTINE %s FROM PUBLIC', f);
  END LOOP;
END $$
"""


def _connect(server: Server, role: str, database: str, **options: Any) -> psycopg.Connection:
    address = server.address(role, database)
    end = time.monotonic() + _RESTART_SECONDS
    while True:
        try:
            return psycopg.connect(**address, autocommit=True, **options)
        except psycopg.OperationalError as error:
            problem = " ".join(str(error).split())
            # A session that died, by the kernel's hand for one, makes the server start again.
            if time.monotonic() > end or not _RESTARTING.search(problem):
                raise UserError(
                    f"{server.folder}: cannot connect to database {database} ({problem}); start "
                    "the server again (python -m evaluation postgres start --dir DIR)"
                ) from None
            time.sleep(0.1)


def _make_roles(owner: psycopg.Connection, server: Server) -> None:
    for role, limit in ((READER, 8), (WATCHDOG, 8)):
        exists = owner.execute("SELECT 1 FROM pg_roles WHERE rolname = %s", (role,)).fetchone()
        owner.execute(
            sql.SQL(
                "{} ROLE {} LOGIN NOSUPERUSER NOCREATEDB NOCREATEROLE NOINHERIT NOREPLICATION "
                "NOBYPASSRLS CONNECTION LIMIT {} PASSWORD {}"
            ).format(
                sql.SQL("ALTER" if exists else "CREATE"),
                sql.Identifier(role),
                sql.Literal(limit),
                sql.Literal(server.passwords[role]),
            )
        )
    for name, value in _ROLE_SETTINGS.items():
        owner.execute(
            sql.SQL("ALTER ROLE {} SET {} = {}").format(
                sql.Identifier(READER), sql.Identifier(name), sql.Literal(value)
            )
        )
    # A role that does not inherit cannot use a membership, so the watchdog must.
    for command in ("ALTER ROLE {} INHERIT", "GRANT pg_signal_backend TO {}"):
        owner.execute(sql.SQL(command).format(sql.Identifier(WATCHDOG)))
    for database in ("postgres", "template1"):
        owner.execute(
            sql.SQL("REVOKE ALL ON DATABASE {} FROM PUBLIC").format(sql.Identifier(database))
        )
    owner.execute(
        sql.SQL("GRANT CONNECT ON DATABASE postgres TO {}").format(sql.Identifier(WATCHDOG))
    )


def _lock_down(owner: psycopg.Connection) -> None:
    """Leave the reader nothing in this database but SELECT."""
    reader = sql.Identifier(READER)
    schemas = owner.execute(
        "SELECT nspname FROM pg_namespace "
        "WHERE nspname !~ '^pg_' AND nspname <> 'information_schema'"
    ).fetchall()
    for (name,) in schemas:
        schema = sql.Identifier(name)
        for command in (
            "REVOKE ALL ON SCHEMA {schema} FROM PUBLIC",
            "GRANT USAGE ON SCHEMA {schema} TO {reader}",
            "GRANT SELECT ON ALL TABLES IN SCHEMA {schema} TO {reader}",
        ):
            owner.execute(sql.SQL(command).format(schema=schema, reader=reader))
    owner.execute("REVOKE ALL ON LANGUAGE plpgsql FROM PUBLIC")
    owner.execute(_TAKE_VOLATILE)


def load(server: Server, dumps: dict[str, Path]) -> None:
    """Load dumps anew, by database, with the roles and rights that hostile queries need.

    Raises:
        UserError: A dump does not load.
    """
    with _connect(server, OWNER, "postgres") as owner:
        _make_roles(owner, server)
        for name in dumps:
            database = sql.Identifier(name)
            owner.execute(sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(database))
            owner.execute(sql.SQL("CREATE DATABASE {}").format(database))
            owner.execute(sql.SQL("REVOKE ALL ON DATABASE {} FROM PUBLIC").format(database))
            owner.execute(
                sql.SQL("GRANT CONNECT ON DATABASE {} TO {}").format(
                    database, sql.Identifier(READER)
                )
            )
    for name, path in dumps.items():
        with _connect(server, OWNER, name) as owner:
            try:
                owner.execute(path.read_text(encoding="utf-8").encode())
            except psycopg.Error as error:
                problem = str(error).splitlines()[0]
                raise UserError(
                    f"{path}: does not load ({problem}); convert the data again"
                ) from None
            _lock_down(owner)


@contextlib.contextmanager
def alone(server: Server) -> Iterator[None]:
    """Use a running server that others could use too; loading would disturb their queries.

    Raises:
        UserError: Another run uses it.
    """
    with _connect(server, OWNER, "postgres") as owner:
        if owner.execute("SELECT pg_try_advisory_lock(1)").fetchone() != (True,):
            raise UserError(
                f"{server.folder}: another run uses this server; wait for it, or leave --postgres "
                "out, then each run starts a separate server"
            )
        yield


def fingerprint(server: Server, database: str) -> str:
    """Hash all that a query could have changed in a database.

    That is its tables' rows, its catalogue's objects, large objects and settings.
    """
    parts = []
    with _connect(server, OWNER, database) as owner:
        tables = owner.execute(
            "SELECT oid::regclass::text FROM pg_class WHERE relkind = 'r' AND relnamespace NOT IN "
            "('pg_catalog'::regnamespace, 'information_schema'::regnamespace) ORDER BY 1"
        ).fetchall()
        queries = [
            f"SELECT md5(string_agg(t::text, E'\\n' ORDER BY t::text)) FROM {table} t"
            for (table,) in tables
        ]
        queries += [
            f"SELECT md5(string_agg(c::text, E'\\n' ORDER BY c::text)) FROM {catalogue} c"
            for catalogue in (
                *("pg_namespace", "pg_proc", "pg_type", "pg_authid", "pg_database"),
                *("pg_db_role_setting", "pg_extension", "pg_largeobject_metadata", "pg_trigger"),
            )
        ]
        queries.append("SELECT count(*)::text FROM pg_class")
        queries.append("SELECT md5(string_agg(s::text, ',')) FROM pg_sequences s")
        for query in queries:
            parts += [str(value) for value in owner.execute(query).fetchone() or ()]
    return "\n".join([*(table for (table,) in tables), *parts])


class PostgresEngine:
    """Runs hostile queries on a running PostgreSQL server, into which it loads the dumps."""

    name = "postgres"

    def __init__(self, server: Server, dumps: Path, limits: Limits | None = None) -> None:
        self._server = server
        self._dumps = databases.dumps(dumps)
        self.limits = limits or Limits()
        self._load()

    def _load(self) -> None:
        self._day = databases.utc_now().date()
        load(self._server, self._dumps)

    def refresh(self) -> bool:
        """Load the databases again if they were loaded on another day; say whether."""
        if databases.utc_now().date() == self._day:
            return False
        self._load()
        return True

    def close(self) -> None:
        """Do nothing: no connection outlives its query."""

    def execute(self, database: str, statement: str) -> Result:
        """Run one statement that may only read; see `evaluation.sql.engines.Engine`."""
        if database not in self._dumps:
            raise UserError(f"no database named {database!r}; convert the data again")
        if len(statement) > self.limits.statement:
            raise Refused(f"failed: longer than {self.limits.statement} characters")
        if "\0" in statement:  # libpq would send what comes before it
            raise Refused("failed: the query contains a null character")
        start = time.monotonic()
        try:
            return self._attempt(database, statement)
        except _Lost:
            # A session that dies takes all others with it, this one perhaps without its doing.
            if time.monotonic() - start > self.limits.seconds:
                raise
        return self._attempt(database, statement)

    def _attempt(self, database: str, statement: str) -> Result:
        timeout = f"-c statement_timeout={int(self.limits.seconds * 1000)}"
        connection = _connect(self._server, READER, database, options=timeout)
        try:
            connection.autocommit = False
            connection.read_only = True
            for name in ("json", "jsonb"):  # as text: no parser of ours reads what a model nested
                connection.adapters.register_loader(name, TextLoader)
            with self._watched(connection):
                return self._fetch(connection, statement)
        except psycopg.Error as error:
            lost = connection.broken or isinstance(error, psycopg.errors.CrashShutdown)
            raise (_Lost if lost else Refused)(_reason(error)) from None
        except UNREADABLE as error:
            raise Refused(f"failed: {error}") from None
        except MemoryError:
            raise Refused("stopped: too much memory") from None
        finally:
            connection.close()  # which rolls back

    def _fetch(self, connection: psycopg.Connection, statement: str) -> Result:
        rows: list[tuple] = []
        with connection.cursor("answer") as cursor:
            cursor.execute(statement)
            columns = tuple(column.name for column in cursor.description or ())
            while (row := cursor.fetchone()) is not None:
                if len(rows) == self.limits.rows:
                    raise Refused(f"stopped: more than {self.limits.rows} rows")
                if row_size(row) > self.limits.bytes:
                    raise Refused(f"stopped: a row of more than {self.limits.bytes} bytes")
                rows.append(row)
        return Result(columns, rows)

    @contextlib.contextmanager
    def _watched(self, connection: psycopg.Connection) -> Iterator[None]:
        """Stop a connection's work when the server's own timeout did not."""
        pid, handle = connection.info.backend_pid, os.dup(connection.fileno())
        over = threading.Event()

        def stop(command: str) -> bool:
            with (
                contextlib.suppress(UserError, psycopg.Error),
                _connect(self._server, WATCHDOG, "postgres") as watchdog,
            ):
                watchdog.execute(command, (pid,))
            return over.wait(self.limits.grace)

        def watch() -> None:
            if over.wait(self.limits.seconds + self.limits.grace):
                return
            if stop("SELECT pg_cancel_backend(%s)") or stop("SELECT pg_terminate_backend(%s)"):
                return
            # The server does not even die: leave it alone and wake whoever waits for it.
            with contextlib.suppress(OSError), socket.socket(fileno=os.dup(handle)) as line:
                line.shutdown(socket.SHUT_RDWR)

        watcher = threading.Thread(target=watch, daemon=True)
        watcher.start()
        try:
            yield
        finally:
            over.set()
            watcher.join()
            os.close(handle)


def _reason(error: psycopg.Error) -> str:
    """Say in one line why the server gave no result."""
    stopped = (
        psycopg.errors.QueryCanceled,
        psycopg.errors.AdminShutdown,
        psycopg.errors.ConfigurationLimitExceeded,
    )
    if isinstance(error, stopped):
        return "stopped: too much work"
    if isinstance(error, psycopg.errors.OutOfMemory):
        return "stopped: too much memory"
    lines = str(error).splitlines() or [type(error).__name__]
    return f"failed: {lines[0]}"
