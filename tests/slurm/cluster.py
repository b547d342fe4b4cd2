"""A whole Slurm on this machine: its own keys, ports and folders, a node with a pretended GPU."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import time
from pathlib import Path

from common.warm import die_with_parent

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "squeue", "scontrol")

SLURM = """\
ClusterName=bottle
SlurmctldHost={host}(127.0.0.1)
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
SlurmctldPort={ports[0]}
SlurmdPort={ports[1]}
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
SchedulerParameters=sched_interval=1,bf_interval=1
SlurmdParameters=config_overrides
ReturnToService=2
AccountingStorageType=accounting_storage/none
JobAcctGatherType=jobacct_gather/none
MinJobAge=3600
GresTypes=gpu
NodeName={host} NodeAddr=127.0.0.1 CPUs=2 RealMemory=16000 Gres=gpu:1 State=UNKNOWN
PartitionName=main Nodes={host} Default=YES MaxTime=2:00:00 State=UP
PartitionName=short Nodes={host} MaxTime=0:10:00 State=UP
"""
# Slurm looks at the device's file only when it may confine jobs, which is not asked for here.
GPUS = "NodeName={host} Name=gpu File=/dev/null\n"


def lacking() -> str | None:
    """Say why no cluster can be started here; None where it can."""
    if os.geteuid() != 0:
        return "Slurm's daemons need root"
    missing = [name for name in PROGRAMS if shutil.which(name) is None]
    if missing:
        return f"not installed: {', '.join(missing)} (`make test-slurm` installs them)"
    return None


def _free_ports(count: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [opened.getsockname()[1] for opened in sockets]
    for opened in sockets:
        opened.close()
    return ports


class Cluster:
    """Starts the three daemons in a folder of their own and ends them, with all jobs.

    Args:
        folder: An empty folder with a short path, for a socket stands in it.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.host = folder, socket.gethostname().split(".")[0]
        values = {"folder": folder, "host": self.host, "ports": _free_ports(2)}
        (folder / "slurm.conf").write_text(SLURM.format(**values))
        (folder / "gres.conf").write_text(GPUS.format(**values))
        (folder / "munge.key").touch(mode=0o600)
        (folder / "munge.key").write_bytes(os.urandom(1024))
        for name in ("state", "spool", "bin"):
            (folder / name).mkdir()
        # The executor clears Slurm's variables before srun, the configuration's place with them.
        srun = folder / "bin" / "srun"
        srun.write_text(
            f'#!/bin/sh\nSLURM_CONF={folder}/slurm.conf exec {shutil.which("srun")} "$@"\n'
        )
        srun.chmod(0o755)
        self.environment = os.environ | {
            "SLURM_CONF": str(folder / "slurm.conf"),
            "PATH": f"{folder / 'bin'}:{os.environ['PATH']}",
        }
        self._running: dict[str, subprocess.Popen] = {}
        self._parent = os.getpid()

    def start(self) -> None:
        """Start everything and wait for the node."""
        folder = self.folder
        self._start(
            *("munged", "--foreground", "--force", f"--socket={folder}/munge.socket"),
            *(f"--key-file={folder}/munge.key", f"--pid-file={folder}/munge.pid"),
            *(f"--log-file={folder}/munge.log", f"--seed-file={folder}/munge.seed"),
        )
        self._wait("munge", "-n", "-S", f"{folder}/munge.socket")
        self._start("slurmctld", "-D", "-c")
        self.start_node()

    def start_node(self, hide: Path | None = None) -> None:
        """Start the node's daemon and wait until it is idle.

        Args:
            hide: A folder that the node must not see, as if it were on no shared file system.
        """
        command = ["slurmd", "-D", "-N", self.host]
        if hide is not None:
            (self.folder / "nothing").mkdir(exist_ok=True)
            mount = f"mount --bind {self.folder}/nothing {hide} && exec {' '.join(command)}"
            command = ["unshare", "--mount", "sh", "-c", mount]
        self._start(*command, name="slurmd")
        self._wait("sinfo", "-h", "-o", "%T", answer="idle")

    def stop_node(self) -> None:
        """End the node's daemon."""
        self._stop("slurmd")

    def stop(self) -> None:
        """Cancel all jobs and end the daemons."""
        if "slurmctld" in self._running:
            subprocess.run(["scancel", "-u", "root"], env=self.environment, check=False)
        for name in ("slurmd", "slurmctld", "munged"):
            self._stop(name)

    def ask(self, *command: str) -> str:
        """Return what one of Slurm's programs prints."""
        done = subprocess.run(
            command, env=self.environment, capture_output=True, text=True, check=True
        )
        return done.stdout

    def jobs(self) -> list[dict[str, str]]:
        """Return Slurm's own record of every job since the start, a mapping each."""
        return [
            dict(part.split("=", 1) for part in line.split() if "=" in part)
            for line in self.ask("scontrol", "--oneliner", "show", "job").splitlines()
            if line.startswith("JobId=")
        ]

    def _start(self, *command: str, name: str | None = None) -> None:
        name = name or command[0]
        with open(self.folder / f"{name}.out", "wb") as output:
            self._running[name] = subprocess.Popen(
                command,
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                preexec_fn=lambda: die_with_parent(self._parent),
            )

    def _stop(self, name: str) -> None:
        process = self._running.pop(name, None)
        if process is None:
            return
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    def _wait(self, *command: str, answer: str = "", seconds: float = 30) -> None:
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            done = subprocess.run(
                command, env=self.environment, capture_output=True, text=True, check=False
            )
            if done.returncode == 0 and answer in done.stdout.split("\n")[0]:
                return
            time.sleep(0.2)
        logs = "".join(
            path.read_text(errors="replace")[-1500:] for path in sorted(self.folder.glob("*.out"))
        )
        raise RuntimeError(f"{command[0]} did not answer {answer!r}: {done.stderr} {logs}")
