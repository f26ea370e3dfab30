"""A Slurm cluster of three nodes on this machine, from Debian's slurm-wlm, for as long as a test needs it."""

from __future__ import annotations

import getpass
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

PROGRAMS = ("slurmctld", "slurmd", "munged", "sbatch", "srun", "scontrol", "squeue")
SBIN = "/usr/sbin:/usr/local/sbin"


def missing() -> list[str]:
    """The programs that are not installed."""
    path = f"{os.environ['PATH']}:{SBIN}"
    return [name for name in PROGRAMS if shutil.which(name, path=path) is None]


def _free_ports(count: int) -> list[int]:
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


CONFIG = """
ClusterName=test
SlurmctldHost=localhost(127.0.0.1)
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
CredType=cred/munge
SlurmctldPort={controller}
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmdSpoolDir={folder}/spool-%n
StateSaveLocation={folder}/state
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
MpiDefault=none
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
SchedulerType=sched/builtin
SchedulerParameters=batch_sched_delay=0,sched_interval=1
MinJobAge=600
KillWait=20
ReturnToService=2
RequeueExit=0
MaxArraySize=6
NodeName=node1 NodeHostname=localhost NodeAddr=127.0.0.1 Port={nodes[0]} CPUs=2 State=UNKNOWN
NodeName=node2 NodeHostname=localhost NodeAddr=127.0.0.1 Port={nodes[1]} CPUs=2 State=UNKNOWN
NodeName=node3 NodeHostname=localhost NodeAddr=127.0.0.1 Port={nodes[2]} CPUs=2 State=UNKNOWN
PartitionName=low Nodes=node[1-3] Default=YES MaxTime=INFINITE State=UP PriorityTier=1 GraceTime=15 OverSubscribe=NO
PartitionName=high Nodes=node[1-3] MaxTime=INFINITE State=UP PriorityTier=10 PreemptMode=OFF OverSubscribe=NO
"""


@contextmanager
def cluster(folder: Path) -> Iterator[dict[str, str]]:
    """Starts the cluster, gives the environment in which its commands work, and stops it."""
    folder.chmod(0o755)
    for name in ("state", "spool-node1", "spool-node2", "spool-node3"):
        (folder / name).mkdir()
    controller, *nodes = _free_ports(4)
    config = folder / "slurm.conf"
    config.write_text(CONFIG.format(folder=folder, user=getpass.getuser(), controller=controller, nodes=nodes))
    key = folder / "munge.key"
    key.write_bytes(os.urandom(1024))
    key.chmod(0o400)
    environment = {**os.environ, "SLURM_CONF": str(config), "PATH": f"{os.environ['PATH']}:{SBIN}"}
    files = {"socket": "munge.socket", "key-file": "munge.key", "pid-file": "munged.pid", "log-file": "munged.log",
             "seed-file": "munged.seed"}  # fmt: skip
    munged = ["munged", "--foreground", "--force", *(f"--{flag}={folder / name}" for flag, name in files.items())]
    daemons = [munged, ["slurmctld", "-D"], *(["slurmd", "-D", "-N", f"node{n}"] for n in (1, 2, 3))]
    with ExitStack() as stack:
        for command in daemons:
            log = stack.enter_context((folder / f"{command[0]}-{len(command)}.out").open("a"))
            process = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
            stack.callback(process.wait)
            stack.callback(process.terminate)
            if command is munged:
                time.sleep(1)
        deadline = time.monotonic() + 60
        while True:
            told = subprocess.run(
                ["sinfo", "-h", "-o", "%T %D"], env=environment, capture_output=True, text=True
            ).stdout
            if told.split()[:1] == ["idle"] and "3" in told.split():
                break
            if time.monotonic() > deadline:
                logs = "".join(path.read_text()[-2000:] for path in folder.glob("slurm*.log"))
                raise RuntimeError(f"the cluster does not start: {told}\n{logs}")
            time.sleep(0.5)
        yield environment
        subprocess.run(["scancel", "--me"], env=environment, check=False)
        time.sleep(1)
