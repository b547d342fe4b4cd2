"""A private PostgreSQL cluster: made, started and stopped by this project alone.

The server listens on loopback only and asks everyone for a password. It runs as a user that is not
root, from its own data directory, and each of its processes may hold only so much memory.
"""

from __future__ import annotations

import contextlib
import json
import os
import pwd
import re
import secrets
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from common.errors import UserError
from common.files import read_json, write_text

MINIMUM = 15
OWNER = "bottle_owner"  # the cluster's superuser: loads the databases, never runs a model's query
READER = "bottle_reader"  # runs the models' queries; may only SELECT
WATCHDOG = "bottle_watchdog"  # may only stop other sessions' queries
MEMORY_KIB = 768 * 1024  # address space of one server process; the gold queries need a tenth
_INSTALL = "install PostgreSQL 15 or newer (Debian: apt-get install postgresql), or use sqlite"

_SETTINGS = {
    "listen_addresses": "127.0.0.1",
    "unix_socket_directories": "",
    "password_encryption": "scram-sha-256",
    "max_connections": "20",
    "shared_buffers": "32MB",
    "dynamic_shared_memory_type": "mmap",
    "max_parallel_workers_per_gather": "0",
    "max_worker_processes": "2",
    "jit": "off",
    "autovacuum": "off",
    # A cluster that lives for one run need not survive a power cut.
    "fsync": "off",
    "synchronous_commit": "off",
    "full_page_writes": "off",
    "timezone": "UTC",
    "datestyle": "ISO, MDY",
    # Hostile queries must not fill the disk with their own text.
    "log_min_messages": "fatal",
    "log_min_error_statement": "panic",
}


@dataclass(frozen=True)
class Server:
    """A running cluster: its folder, its port on 127.0.0.1, the passwords of its three roles."""

    folder: Path
    port: int
    passwords: dict[str, str]

    def address(self, role: str, database: str) -> dict[str, Any]:
        """Return what psycopg needs to connect as OWNER, READER or WATCHDOG."""
        return {
            "host": "127.0.0.1",
            "port": self.port,
            "user": role,
            "password": self.passwords[role],
            "dbname": database,
            "connect_timeout": 10,
        }


def programs() -> Path | None:
    """Find the newest installed server programs that are new enough; None if there are none."""
    found = []
    on_path = shutil.which("initdb")
    folders = [*Path("/usr/lib/postgresql").glob("*/bin"), *Path("/usr").glob("pgsql-*/bin")]
    for folder in [*folders, *([Path(on_path).resolve().parent] if on_path else [])]:
        if not all((folder / program).is_file() for program in ("initdb", "pg_ctl", "postgres")):
            continue
        output = subprocess.run(
            [folder / "postgres", "--version"], capture_output=True, text=True, check=False
        ).stdout
        version = re.search(r"(\d+)", output)
        if version and int(version.group(1)) >= MINIMUM:
            found.append((int(version.group(1)), folder))
    return max(found)[1] if found else None


def _programs() -> Path:
    folder = programs()
    if folder is None:
        raise UserError(f"no PostgreSQL {MINIMUM} or newer on this machine; {_INSTALL}")
    return folder


def _identity() -> dict[str, Any]:
    """Return the arguments of subprocess.run that give up root's rights."""
    if os.geteuid() != 0:
        return {}
    for name in ("postgres", "nobody"):
        with contextlib.suppress(KeyError):
            user = pwd.getpwnam(name)
            return {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []}
    raise UserError("PostgreSQL does not run as root and there is no user postgres or nobody")


def _run(arguments: list[str | Path], what: str, folder: Path) -> None:
    """Run a server program with bounded memory and no rights of root."""
    limited = f'ulimit -c 0; ulimit -v {MEMORY_KIB} && exec "$@"'
    with tempfile.TemporaryFile() as output:  # a pipe would be held open by the server
        done = subprocess.run(
            ["/bin/sh", "-c", limited, "sh", *map(str, arguments)],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            cwd="/",
            env={"PATH": "/usr/bin:/bin", "LC_ALL": "C"},
            check=False,
            **_identity(),
        )
        output.seek(0)
        lines = output.read().decode(errors="replace").strip().splitlines()
    if done.returncode:
        reason = lines[-1] if lines else f"exit code {done.returncode}"
        raise UserError(
            f"{folder}: PostgreSQL did not {what} ({reason}); see {folder}/log, "
            "or give another empty folder that its user can reach, such as one in /tmp"
        )


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _state_file(folder: Path) -> Path:
    return folder / "server.json"


def _own(folder: Path) -> None:
    """Make a folder that the server's user owns; the state in it stays with the caller."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    identity = _identity()
    if identity:
        os.chown(folder, identity["user"], identity["group"])


def start(folder: Path) -> Server:
    """Make a cluster and start it; one that runs already is returned.

    Args:
        folder: A new or empty folder, or one that `start` filled before.

    Returns:
        The server; its passwords are also in `server.json`, readable by the caller alone.

    Raises:
        UserError: PostgreSQL is missing, or the folder is another's or cannot be used.
    """
    folder = folder.resolve()
    bin = _programs()
    running = status(folder)
    if running:
        return running
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder} is no folder; give a new one with --dir")
    if folder.is_dir() and any(folder.iterdir()) and not _state_file(folder).is_file():
        raise UserError(f"{folder} is not empty; give a new folder with --dir")
    _own(folder)
    data, log = folder / "data", folder / "log"
    passwords = {role: secrets.token_urlsafe(24) for role in (OWNER, READER, WATCHDOG)}
    shutil.rmtree(data, ignore_errors=True)
    with _password_file(folder, passwords[OWNER]) as password_file:
        _run(
            [
                bin / "initdb",
                *("--pgdata", data, "--username", OWNER, "--pwfile", password_file),
                *("--auth", "scram-sha-256", "--encoding", "UTF8", "--locale", "C", "--no-sync"),
            ],
            "make a cluster",
            folder,
        )
    settings = "".join(f"{name} = '{value}'\n" for name, value in _SETTINGS.items())
    with open(data / "postgresql.auto.conf", "a", encoding="utf-8") as stream:
        stream.write(settings)
    for attempt in range(3):  # another program may take the port in between
        port = _free_port()
        try:
            _run(
                [
                    *(bin / "pg_ctl", "start", "--wait", "--silent"),
                    *("--pgdata", data, "--log", log, "--options", f"-p {port}"),
                ],
                "start",
                folder,
            )
            break
        except UserError:
            if attempt == 2:
                raise
    state = json.dumps({"port": port, "passwords": passwords})
    _state_file(folder).touch(mode=0o600)
    write_text(_state_file(folder), state + "\n")
    _state_file(folder).chmod(0o600)
    return Server(folder, port, passwords)


@contextlib.contextmanager
def _password_file(folder: Path, password: str) -> Iterator[Path]:
    identity = _identity()
    path = folder / "password"
    path.touch(mode=0o600)
    try:
        path.write_text(password)
        if identity:
            os.chown(path, identity["user"], identity["group"])
        yield path
    finally:
        path.unlink(missing_ok=True)


def status(folder: Path) -> Server | None:
    """Find the server that runs from a folder; None if there is none.

    Raises:
        UserError: The state belongs to another user.
    """
    folder = folder.resolve()
    if not _state_file(folder).is_file() or not (folder / "data/postmaster.pid").is_file():
        return None
    try:
        state = read_json(_state_file(folder))
    except PermissionError:
        raise UserError(f"{folder}: a server of another user; give another folder") from None
    try:
        _run([_programs() / "pg_ctl", "status", "--pgdata", folder / "data"], "answer", folder)
    except UserError:
        return None
    return Server(folder, state["port"], state["passwords"])


def stop(folder: Path) -> bool:
    """Stop the server of a folder and remove its data; say whether one ran there.

    Raises:
        UserError: It does not stop.
    """
    folder = folder.resolve()
    running = status(folder) is not None
    if running:
        _run(
            [
                *(_programs() / "pg_ctl", "stop", "--mode", "immediate", "--wait", "--silent"),
                *("--pgdata", folder / "data"),
            ],
            "stop",
            folder,
        )
    if _state_file(folder).is_file():
        shutil.rmtree(folder / "data", ignore_errors=True)
        for name in ("log", "server.json"):
            (folder / name).unlink(missing_ok=True)
    return running


@contextlib.contextmanager
def temporary() -> Iterator[Server]:
    """Run a cluster in a temporary folder, which is removed even if this process is killed.

    Raises:
        UserError: PostgreSQL is missing or does not start.
    """
    bin = _programs()
    folder = Path(tempfile.mkdtemp(prefix="bottle-postgres-"))
    guard = None
    try:
        server = start(folder)
        # A shell that outlives this process even if it is killed, and then cleans up.
        guard = subprocess.Popen(
            [
                *("/bin/sh", "-c"),
                'while [ -d "/proc/$1" ]; do sleep 2; done; '
                '"$2" stop --mode immediate --wait --silent --pgdata "$3/data"; rm -rf -- "$3"/*',
                *("guard", str(os.getpid()), str(bin / "pg_ctl"), str(folder)),
            ],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            cwd="/",
            start_new_session=True,
            **_identity(),
        )
        yield server
    finally:
        if guard is not None:
            guard.kill()
            guard.wait()
        stop(folder)
        shutil.rmtree(folder, ignore_errors=True)


def describe(server: Server) -> str:
    """Return a running server's folder and port as JSON, without its passwords."""
    about = asdict(server) | {"folder": str(server.folder)}
    about.pop("passwords")
    return json.dumps(about)
