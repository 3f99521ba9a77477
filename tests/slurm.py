"""SLURM with one node, this machine, in a folder of its own: for tests, on the loopback device.

python -m tests.slurm FOLDER COMMAND ...    run a command that finds this SLURM
"""

import contextlib
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

__all__ = ["NEEDED", "Cluster", "cluster", "missing"]

NEEDED = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "squeue", "scancel", "scontrol")
CONFIGURATION = """
ClusterName=one
SlurmctldHost={host}(127.0.0.1)
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
CryptoType=crypto/munge
SlurmctldPort={ports[0]}
SlurmdPort={ports[1]}
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
SchedulerParameters=sched_interval=2,batch_sched_delay=1
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU_Memory
AccountingStorageType=accounting_storage/none
JobAcctGatherType=jobacct_gather/none
JobCompType=jobcomp/none
MailProg=/bin/true
ReturnToService=2
SlurmdTimeout={patience}
KillWait=5
MinJobAge=300
NodeName={host} NodeAddr=127.0.0.1 CPUs={cpus} RealMemory={memory} State=UNKNOWN
PartitionName=all Nodes={host} Default=YES MaxTime=INFINITE State=UP
"""
# A cluster whose nodes have cgroups would say proctrack/cgroup; linuxproc needs no rights to them.


def missing() -> list[str]:
    """The commands of SLURM that this machine lacks."""
    where = os.pathsep.join((os.environ.get("PATH", ""), "/usr/sbin"))
    return [name for name in NEEDED if shutil.which(name, path=where) is None]


class Cluster:
    """The three daemons, each a process that can be killed and started again."""

    def __init__(self, folder: Path, *, cpus: int = 2, memory: int = 8000, patience: int = 20):
        self.folder, self.running = folder.resolve(), {}
        for name in ("state", "spool"):
            (self.folder / name).mkdir(parents=True, exist_ok=True)
        self.folder.chmod(0o755)  # munged refuses a folder that others may write to
        key = self.folder / "munge.key"
        key.write_bytes(secrets.token_bytes(128))
        key.chmod(0o600)
        told = {"host": socket.gethostname().split(".")[0], "user": _user(), "folder": self.folder}
        told |= {"cpus": cpus, "memory": memory, "patience": patience, "ports": _ports(2)}
        self.node = told["host"]
        (self.folder / "slurm.conf").write_text(CONFIGURATION.format(**told))
        self.environment = os.environ | {
            "SLURM_CONF": str(self.folder / "slurm.conf"),
            "PATH": os.pathsep.join((str(self._srun()), os.environ["PATH"], "/usr/sbin")),
        }

    def _srun(self) -> Path:
        """A folder with an srun that finds this SLURM: Snakemake takes SLURM_CONF from its jobs."""
        path = self.folder / "bin" / "srun"
        path.parent.mkdir(exist_ok=True)
        conf, real = self.folder / "slurm.conf", shutil.which("srun")
        path.write_text(f'#!/bin/sh\nSLURM_CONF={conf} exec {real} "$@"\n')
        path.chmod(0o755)
        return path.parent

    def start(self, name: str) -> None:
        """Start a daemon, in the foreground of a process of ours."""
        files = {"key-file": "munge.key", "socket": "munge.socket", "pid-file": "munge.pid"}
        files |= {"log-file": "munge.log", "seed-file": "munge.seed"}
        words = {
            "munged": [f"--{k}={self.folder / v}" for k, v in files.items()]
            + ["--foreground", "--force"],
            "slurmctld": ["-D"],
            "slurmd": ["-D", "-N", self.node],
        }[name]
        with (self.folder / f"{name}.out").open("ab") as out:
            self.running[name] = subprocess.Popen(
                [name, *words], env=self.environment, stdout=out, stderr=out
            )

    def kill(self, name: str) -> None:
        """End a daemon without a warning, as a power cut does."""
        self.running[name].send_signal(signal.SIGKILL)
        self.running.pop(name).wait()

    def save(self) -> None:
        """Keep what the controller has saved by now."""
        shutil.copytree(self.folder / "state", self.folder / "saved")

    def forget(self) -> None:
        """Give a controller that was killed what was kept: it knows of nothing that came after."""
        shutil.rmtree(self.folder / "state")
        shutil.copytree(self.folder / "saved", self.folder / "state")

    def ask(self, *words: str) -> str:
        """What a command of SLURM prints; "" if it fails."""
        done = subprocess.run(
            words, env=self.environment, capture_output=True, text=True, timeout=60
        )
        return done.stdout if done.returncode == 0 else ""

    def jobs(self, state: str = "RUNNING") -> list[str]:
        """The numbers of the jobs in a state."""
        return self.ask("squeue", "--noheader", "--states", state, "--format", "%i").split()

    def up(self) -> bool:
        """Whether the node takes jobs."""
        return self.ask("sinfo", "--noheader", "--format", "%t").strip() in ("idle", "mix", "alloc")


@contextlib.contextmanager
def cluster(folder: Path, **size: int) -> Iterator[Cluster]:
    """SLURM inside the block; its jobs and daemons are gone after it."""
    made = Cluster(folder, **size)
    try:
        made.start("munged")
        until(lambda: (made.folder / "munge.socket").exists(), 30)
        made.start("slurmctld")
        made.start("slurmd")
        until(made.up, 60)
        yield made
    finally:
        with contextlib.suppress(subprocess.TimeoutExpired):
            for job in made.jobs("all"):
                made.ask("scancel", job)
        for name in ("slurmd", "slurmctld", "munged"):
            if process := made.running.get(name):
                process.terminate()
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(20)
                process.kill()


def until(holds: Callable[[], bool], seconds: float) -> None:
    """Wait for something to hold.

    Raises:
        TimeoutError: If it does not within these seconds.
    """
    end = time.monotonic() + seconds
    while not holds():
        if time.monotonic() > end:
            raise TimeoutError(f"not within {seconds} seconds")
        time.sleep(0.5)


def _user() -> str:
    import pwd

    return pwd.getpwuid(os.getuid()).pw_name


def _ports(n: int) -> list[int]:
    """Ports that are free now."""
    with contextlib.ExitStack() as stack:
        found = [stack.enter_context(socket.socket()) for _ in range(n)]
        for one in found:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in found]


if __name__ == "__main__":
    with cluster(Path(sys.argv[1])) as running:
        sys.exit(subprocess.run(sys.argv[2:], env=running.environment).returncode)
