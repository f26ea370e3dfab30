"""Run commands of the project as jobs, on a Slurm cluster or as processes of this machine, through submitit.

    encoder-bench submit --cluster slurm --gpus 8 -- python -m pretrain --recipe RECIPE --data /data/imagenet
    encoder-bench submit --cluster slurm --gpus 1 -- encoder-bench all --encoder 'runs/*/*.pth' --data /data
    encoder-bench submit status

`encoder-bench all` becomes one job per encoder and benchmark, an array on Slurm. A job that is preempted or runs
out of its time is queued again and resumes, as every long command of the project does. `--then` runs when the last job
has ended, even if it failed. `status` lists the jobs of the folder with their state and log.
"""

from __future__ import annotations

import json
import logging
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal
from unittest.mock import patch

import submitit
import tyro
from submitit.core.utils import FailedJobError
from submitit.helpers import Checkpointable, DelayedSubmission
from submitit.slurm.slurm import SlurmExecutor

from results.command_line import parse
from results.errors import InputError, print_error
from results.files import write_file

log = logging.getLogger("submit")

SPLIT_UP = ["-m", "benchmarks", "all"]
WAIT_FOR_REQUEUE = 600.0  # seconds in which Slurm ends a job that it queues again
DEFAULT_ARRAY_SIZE = 1001  # Slurm's own default of MaxArraySize


@dataclass
class SubmitOptions:
    """Run a command as jobs, through submitit. The command follows `--`."""

    cluster: Literal["local", "slurm"] = "local"
    folder: Path = Path("work/jobs")
    """logs, states and submissions; on a file system that all nodes share"""
    dry_run: bool = False
    """print what would be submitted (for Slurm: the sbatch script), and stop; works without Slurm"""
    name: str | None = None
    """name of the jobs; by default what they run, as in `encoder, protocol`"""
    minutes: int = 24 * 60
    """time limit of one job; one that needs longer is queued again"""
    requeues: int = 10
    """how many times a job that exceeds its time limit is queued again"""
    grace_seconds: int = 120
    """time between the signal to save and the end of the time limit"""
    nodes: int = 1
    """nodes of each job; `python -m …` runs under torchrun on all of them"""
    gpus: Annotated[int, tyro.conf.arg(aliases=["--gpus-per-node"])] = 0
    """GPUs per node; with more than one, `python -m …` runs under torchrun"""
    gpu_type: str | None = None
    """GPU model, as the cluster names it, such as a100"""
    cpus: int = 2
    """cores per node"""
    memory_gb: int | None = None
    """memory per node"""
    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    constraint: str | None = None
    exclude: str | None = None
    """nodes to exclude"""
    mail: str | None = None
    """address for Slurm's mails when a job ends or fails"""
    sbatch: tuple[str, ...] = ()
    """further options of sbatch, such as `reservation=maintenance nice=100`"""
    setup: tuple[str, ...] = ()
    """shell lines to run first on the node, such as 'module load cuda'"""
    parallel: int | None = None
    """jobs that run at the same time; by default 1 on this machine, no limit on Slurm"""
    pack: int | None = None
    """commands that one job runs one after the other; by default as few as the cluster's MaxArraySize allows"""
    together: bool = False
    """run `encoder-bench all` as one job"""
    then: str = "encoder-bench tables --out work/tables.md"
    """command that runs when the last job has ended, on two cores without a GPU; empty for none"""

    def __post_init__(self) -> None:
        """Raises InputError for a number that cannot be used."""
        for flag in ("minutes", "nodes", "cpus", "parallel", "pack"):
            value = getattr(self, flag)
            if value is not None and value < 1:
                raise InputError(f"--{flag} must be at least 1, got {value}")
        for flag in ("requeues", "gpus", "grace_seconds"):
            if getattr(self, flag) < 0:
                raise InputError(f"--{flag.replace('_', '-')} must be at least 0, got {getattr(self, flag)}")
        for option in self.sbatch:
            if not re.fullmatch(r"[a-z][a-z-]*(=.*)?", option):
                raise InputError(f"--sbatch {option}: expected OPTION=VALUE or OPTION, as in reservation=maintenance")
        if self.cluster == "local" and self.nodes > 1:
            raise InputError("--nodes needs --cluster slurm: local jobs run on this machine")


@dataclass
class Status:
    """Options of `status`."""

    folder: Path = Path("work/jobs")
    """folder that the jobs were submitted with"""


@dataclass
class SubmittedCommand(Checkpointable):
    """One or more command lines as a job, run in their order until one fails.

    The process may be told to stop in two ways. SIGUSR2 comes from the scheduler before the time limit; submitit calls
    `checkpoint` and queues the job again. SIGTERM comes to every process of a job that Slurm preempts or queues again;
    the command saves its state and ends, and the job waits for Slurm.

    Attributes:
        name: of the job.
        status: file that says what became of the job.
        grace_seconds: for the command to save its state.
    """

    commands: list[list[str]]
    name: str
    status: Path
    grace_seconds: int = 120
    process: Any = field(default=None, repr=False)
    stopping: bool = field(default=False, repr=False)

    def __call__(self) -> int:
        signal.signal(signal.SIGTERM, self._stop)
        environment = submitit.JobEnvironment()
        slurm_job = os.environ.get("SLURM_JOB_ID")
        if slurm_job and environment.global_rank == 0:  # the elements of an array share a name until they run
            _run_quietly(["scontrol", "update", f"JobId={slurm_job}", f"JobName={self.name}"])
        log_file = environment.paths.stderr
        for command in self.commands:
            self._tell("running", log_file)
            # What it prints goes to the log that `submit status` names: the reason of a failure may be there.
            self.process = subprocess.Popen(  # noqa: S603
                _on_this_node(command, environment), env=self._environment(), stdout=2
            )
            # Popen.wait() would hold its lock when the signal comes, and `checkpoint` could not wait for the end.
            while (code := self.process.poll()) is None:
                time.sleep(0.2)
            if self.stopping:
                self._tell("stopped", log_file)
                self._leave(slurm_job)
            if code:
                self._tell("failed", log_file, code)
                raise RuntimeError(f"{shlex.join(command)} ended with exit code {code}")
        self._tell("done", log_file, 0)
        return 0

    def _environment(self) -> dict[str, str]:
        """Torchrun passes all signals that ask for a stop on to its ranks, and kills them after this time, not 30 s."""
        signals = "SIGTERM,SIGINT,SIGHUP,SIGQUIT,SIGUSR1,SIGUSR2"
        torchrun = {"PET_SIGNALS_TO_HANDLE": signals, "PET_SHUTDOWN_TIMEOUT": str(self._time_to_save())}
        return torchrun | os.environ

    def _time_to_save(self) -> int:
        return max(1, self.grace_seconds - 20)

    def _stop(self, signum: int, frame: Any) -> None:
        self.stopping = True
        if self.process is not None and self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)

    def _leave(self, slurm_job: str | None) -> None:
        """End a job that was told to: on Slurm it is queued again and not failed."""
        if slurm_job is None:
            sys.exit(128 + signal.SIGTERM)
        if submitit.JobEnvironment().global_rank == 0:
            _run_quietly(["scontrol", "requeue", submitit.JobEnvironment().job_id])  # it may be requeued already
        time.sleep(WAIT_FOR_REQUEUE)  # Slurm ends this process; ending by itself would count as a failure
        sys.exit(128 + signal.SIGTERM)

    def _tell(self, state: str, log_file: Path, code: int | None = None) -> None:
        if submitit.JobEnvironment().global_rank == 0:
            write_file(self.status, self._described(submitit.JobEnvironment().job_id, state, log_file, code))

    def submitted(self, job: submitit.Job[Any], local: bool) -> None:
        """Tell that the job waits, unless it has told more already."""
        self.status.parent.mkdir(parents=True, exist_ok=True)
        with suppress(FileExistsError), self.status.open("xb") as file:
            file.write(self._described(job.job_id, "queued", job.paths.stderr, None, local))

    def _described(self, job: str, state: str, log_file: Path, code: int | None, local: bool | None = None) -> bytes:
        local = "SLURM_JOB_ID" not in os.environ if local is None else local
        fields = {"name": self.name, "job": job, "local": local, "state": state, "code": code, "log": str(log_file)}
        return json.dumps(fields).encode()

    def checkpoint(self, *args: Any, **kwargs: Any) -> DelayedSubmission:
        if self.process is not None and self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(self._time_to_save())
            except subprocess.TimeoutExpired:
                self.process.kill()
        return DelayedSubmission(SubmittedCommand(self.commands, self.name, self.status, self.grace_seconds))


def _run_quietly(command: list[str]) -> str:
    """The output of a command that may fail."""
    try:
        return subprocess.run(command, check=False, capture_output=True, text=True, timeout=60).stdout  # noqa: S603
    except (OSError, subprocess.TimeoutExpired):
        return ""


def _on_this_node(command: list[str], environment: submitit.JobEnvironment) -> list[str]:
    """The command with the addresses filled in that only a running job knows."""
    job = os.environ.get("SLURM_JOB_ID", "0")
    first_node = os.environ.get("SLURM_LAUNCH_NODE_IPADDR") or environment.hostnames[0]  # it runs the batch script
    is_first = str(environment.node == 0).lower()
    filled = {"{host}": first_node, "{first}": is_first, "{id}": job, "{port}": str(29_500 + int(job) % 1000)}
    return [re.sub("|".join(map(re.escape, filled)), lambda m: filled[m[0]], part) for part in command]


def main(arguments: list[str] | None = None) -> int:
    """Submit the command after `--`, or list jobs."""
    arguments = sys.argv[1:] if arguments is None else arguments
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    at = arguments.index("--") if "--" in arguments else len(arguments)
    command = arguments[at + 1 :]
    try:
        if arguments[:1] == ["status"]:
            return _print_status(parse(Status, arguments[1:at], "encoder-bench submit status"))
        options = parse(SubmitOptions, arguments[:at], "encoder-bench submit")
        if not command:
            raise InputError("no command; write it after --, as in: encoder-bench submit -- encoder-bench all …")
        command = _for_torchrun(command)
        commands, left_out = ([command], 0) if options.together else split_up(command)
        if not commands:
            raise InputError("none of the encoders can be loaded: nothing was submitted")
        jobs = _jobs(options, commands)
        then = _for_torchrun(shlex.split(options.then))
        code = (_slurm if options.cluster == "slurm" else _local)(options, jobs, then)
    except InputError as error:
        return print_error("submit", error)
    return code or (1 if left_out else 0)


def _for_torchrun(command: list[str]) -> list[str]:
    """`encoder-bench …` in words that torchrun can start; any other command as it is."""
    return ["python", "-m", "benchmarks", *command[1:]] if command[:1] == ["encoder-bench"] else command


def split_up(command: list[str]) -> tuple[list[list[str]], int]:
    """`encoder-bench all …` as one command per encoder and benchmark; any other command as it is.

    Returns:
        the commands, and the number of encoders that cannot be loaded.
    """
    at = next((i for i in range(len(command)) if command[i : i + 3] == SPLIT_UP), None)
    if at is None:
        return [command], 0
    from benchmarks.__main__ import AllFlags, parse_flags, suite
    from benchmarks.encoders.forms import expand
    from benchmarks.evaluate import load, unique_names

    flags = parse_flags("all", AllFlags, command[at + 3 :])[0]
    encoders = expand(flags.encoder, flags.name)
    named, bad = unique_names(encoders, flags.name, flags.facts), 0
    for encoder in encoders:
        if encoder in named and len(encoders) > 1:  # a single one was not loaded for its name
            continue
        try:
            load(encoder, None, flags.facts)
        except InputError as error:
            sys.stderr.write(f"submit: {encoder}: {error}\n")
            named.pop(encoder, None)
            bad += 1
    # The last of two flags of one name holds. After an equals sign a file name may begin with dashes.
    commands = [
        [*command, f"--encoder={encoder}", *([f"--name={name}"] if name else []), "--only", question.protocol.id]
        for encoder, name in named.items()
        for question in suite(flags.data, flags.only)
    ]
    return commands, bad


def with_torchrun(command: list[str], nodes: int, gpus: int) -> list[str]:
    """The command as a node runs it: with this Python, and under torchrun where there are several GPUs or nodes.

    Raises:
        InputError: a torchrun of the user's own on several nodes.
    """
    own_torchrun = command[0] == "torchrun" or command[1:3] == ["-m", "torch.distributed.run"]
    if own_torchrun and nodes > 1:
        raise InputError("omit torchrun from the command: --nodes starts it on every node")
    torchrun = [sys.executable, "-m", "torch.distributed.run"]  # the node need not know where torchrun is
    if command[0] == "torchrun":
        return [*torchrun, *command[1:]]
    if command[0] in ("python", "python3"):
        command = [sys.executable, *command[1:]]  # a node's own may be another
    ranks = max(gpus, 1)
    if command[:2] != [sys.executable, "-m"] or own_torchrun or nodes * ranks == 1:
        return command
    if nodes == 1:
        return [*torchrun, "--standalone", "--nproc-per-node", str(ranks), *command[1:]]
    meeting = ["--rdzv-backend", "c10d", "--rdzv-endpoint", "{host}:{port}", "--rdzv-id", "{id}",
               "--rdzv-conf", "is_host={first}"]  # fmt: skip
    return [*torchrun, "--nnodes", str(nodes), "--nproc-per-node", str(ranks), *meeting, *command[1:]]


def _jobs(options: SubmitOptions, commands: list[list[str]]) -> list[SubmittedCommand]:
    """The commands as jobs, several to a job where there are more than an array takes."""
    pack = options.pack or 1
    if options.pack is None and options.cluster == "slurm":
        pack = -(-len(commands) // (_max_array_size() - 1))
    prefix = time.strftime("%Y%m%d-%H%M%S") + f"-{os.getpid()}"
    jobs = []
    for number, first in enumerate(range(0, len(commands), pack)):
        packed = commands[first : first + pack]
        name = options.name or _called(packed)
        status = options.folder.absolute() / "status" / f"{prefix}-{number:04}.json"
        lines = [with_torchrun(command, options.nodes, options.gpus) for command in packed]
        jobs.append(SubmittedCommand(lines, name, status, options.grace_seconds))
    return jobs


def _called(commands: Sequence[list[str]]) -> str:
    """A short name for what a job runs: encoder and protocol, or the module or program."""

    def last(command: list[str], flag: str) -> str | None:
        values = [
            value if equals else following
            for part, following in zip(command, [*command[1:], None], strict=True)
            for name, equals, value in [part.partition("=")]
            if name == flag
        ]
        return values[-1] if values else None

    command = commands[0]
    encoder = last(command, "--name") or last(command, "--encoder")
    what = [Path(encoder).stem if encoder else None, last(command, "--only") or last(command, "--protocol")]
    name = ", ".join(part for part in what if part)
    if not name:
        name = last(command, "-m") or Path(command[0]).name
    if recipe := last(command, "--recipe"):
        name += f", {Path(recipe).stem}"
    more = f" and {len(commands) - 1} more" if len(commands) > 1 else ""
    return re.sub(r"[^\w .,@+-]", "_", name)[:100] + more


def _max_array_size() -> int:
    found = re.search(r"MaxArraySize\s*=\s*(\d+)", _run_quietly(["scontrol", "show", "config"]))
    return max(2, int(found[1])) if found else DEFAULT_ARRAY_SIZE


def _executor(options: SubmitOptions, name: str, **more: Any) -> submitit.AutoExecutor:
    limit = {f"{options.cluster}_max_num_timeout": options.requeues}
    executor = submitit.AutoExecutor(folder=options.folder / "%j", cluster=options.cluster, **limit)
    executor.update_parameters(name=name, timeout_min=options.minutes, cpus_per_task=options.cpus, **more)
    return executor


def _local(options: SubmitOptions, jobs: list[SubmittedCommand], then: list[str]) -> int:
    if options.dry_run:
        for job in jobs:
            sys.stdout.write("".join(f"{job.name}: {shlex.join(line)}\n" for line in job.commands))
        return 0
    executor = _executor(options, options.name or "encoder-bench", gpus_per_node=options.gpus)

    def run(command: SubmittedCommand) -> bool:
        job = executor.submit(command)
        command.submitted(job, local=True)
        log.info("job %s: %s", job.job_id, "; ".join(map(shlex.join, command.commands)))
        error = job.exception()  # waits
        if error is not None:
            log.error("job %s failed; its log is %s", job.job_id, job.paths.stderr)
        return error is None

    with ThreadPoolExecutor(options.parallel or 1) as pool:
        ended = list(pool.map(run, jobs))
    log.info("%d of %d jobs succeeded", sum(ended), len(ended))
    last = with_torchrun(then, 1, 0) if then else []
    code = subprocess.run(last, check=False).returncode if last else 0  # noqa: S603 - the user's own command
    return code or (0 if all(ended) else 1)


def _slurm(options: SubmitOptions, jobs: list[SubmittedCommand], then: list[str]) -> int:
    if not options.dry_run and (shutil.which("sbatch") is None or shutil.which("srun") is None):
        raise InputError(
            f"no Slurm on {socket.gethostname()}: sbatch and srun are not on PATH; use --cluster local, or --dry-run"
        )
    named = {key: getattr(options, key) for key in ("partition", "account", "qos", "constraint", "exclude")}
    where = {f"slurm_{key}": value for key, value in named.items() if value}
    further = dict(option.partition("=")[::2] for option in options.sbatch)
    extra: dict[str, Any] = {key: value or True for key, value in further.items()}
    if options.mail:
        extra = {"mail-type": "END,FAIL", "mail-user": options.mail, **extra}
    resources: dict[str, Any] = {"nodes": options.nodes, "tasks_per_node": 1}
    if options.memory_gb:
        resources["mem_gb"] = options.memory_gb
    if options.gpus:
        gpus = f"{options.gpu_type}:{options.gpus}" if options.gpu_type else options.gpus
        resources["slurm_gpus_per_node"] = gpus
    shared = {
        **where,
        "slurm_setup": list(options.setup),
        "slurm_signal_delay_s": options.grace_seconds,
        "slurm_wckey": "encoder-bench",
    }
    # submitit asks for srun before it writes a script; a dry run only prints the script.
    with patch.object(SlurmExecutor, "affinity", return_value=1) if options.dry_run else nullcontext():
        executor = _executor(
            options,
            options.name or (jobs[0].name if len(jobs) == 1 else f"encoder-bench, {len(jobs)} jobs"),
            slurm_array_parallelism=options.parallel or len(jobs),
            slurm_additional_parameters={"requeue": True, **extra},
            **resources,
            **shared,
        )
    page = {"nodes": 1, "tasks_per_node": 1, **shared}
    if options.dry_run:
        sys.stdout.write(_script(executor, len(jobs)))
        for number, job in enumerate(jobs):
            sys.stdout.write("".join(f"# {number} {job.name}: {shlex.join(line)}\n" for line in job.commands))
        return 0
    try:
        with executor.batch():  # one array
            submitted = [executor.submit(job) for job in jobs]
        for handle, job in zip(submitted, jobs, strict=True):
            job.submitted(handle, local=False)
            log.info("job %s: %s: %s", handle.job_id, job.name, "; ".join(map(shlex.join, job.commands)))
        if then:
            arrays = sorted({handle.job_id.partition("_")[0] for handle in submitted})
            after = {"dependency": f"afterany:{':'.join(arrays)}", "requeue": True, **extra}
            brief = SubmitOptions(cluster="slurm", folder=options.folder, minutes=60, cpus=2, requeues=options.requeues)
            last = _executor(brief, "pages", slurm_additional_parameters=after, **page)
            status = jobs[0].status.with_name(jobs[0].status.stem.rpartition("-")[0] + "-then.json")
            page_job = SubmittedCommand([with_torchrun(then, 1, 0)], "pages", status)
            handle = last.submit(page_job)
            page_job.submitted(handle, local=False)
            log.info("job %s, when they have ended: %s", handle.job_id, shlex.join(then))
    except FailedJobError as error:
        raise InputError(f"sbatch refused the job: {_words_of_sbatch(error)}") from error
    log.info("encoder-bench submit status --folder %s lists the jobs", options.folder)
    return 0


def _script(executor: submitit.AutoExecutor, count: int) -> str:
    """The batch script that sbatch would get."""
    slurm: Any = executor._executor
    if count > 1:
        slurm.parameters["map_count"] = count
    return str(slurm._make_submission_file_text(slurm._submitit_command_str, "dry-run")) + "\n"


def _words_of_sbatch(error: Exception) -> str:
    lines = [line for line in str(error).splitlines() if line.strip()]
    said = [line.partition("sbatch: error: ")[2] for line in lines if "sbatch: error: " in line]
    return "; ".join(said) or lines[-1]


def _print_status(options: Status) -> int:
    """One line per job: state, number, name, log. Exit code 1 where a job has failed or vanished."""
    files = sorted((options.folder / "status").glob("*.json"))
    jobs = [json.loads(path.read_text(encoding="utf-8")) for path in files]
    queue = _run_quietly(["squeue", "--me", "--array", "--noheader", "--format=%i %T"])
    queued = {line.split()[0]: line.split()[1].lower() for line in queue.splitlines()}
    failed = False
    for job in jobs:
        if job["state"] not in ("done", "failed"):
            alive = Path("/proc", job["job"]).exists() if job["local"] else job["job"] in queued
            job["state"] = (job["state"] if job["local"] else queued[job["job"]]) if alive else "lost"
        failed |= job["state"] in ("failed", "lost")
        sys.stdout.write(f"{job['state']:<10} {job['job']:<10} {job['name']:<40} {job['log']}\n")
    if not jobs:
        sys.stdout.write(f"no jobs in {options.folder}\n")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
