"""Send a command of the project to a cluster, or to processes of this machine, through submitit.

    python scripts/submit.py -- python -m pretrain --recipe mocov2_resnet50_8xb32-coslr-200e_in1k --data /data/imagenet
    python scripts/submit.py --cluster slurm --gpus 1 -- python -m benchmarks all --encoder 'runs/*/*.pth' --data /data

`python -m benchmarks all` becomes one job per encoder and benchmark, an array on Slurm. A job that is preempted or runs
out of its time is queued again and resumes, as every long command of the project does. `--then` runs when the last job
has ended, even if it failed.
"""

from __future__ import annotations

import logging
import shlex
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import submitit
from submitit.helpers import Checkpointable, DelayedSubmission

from results.command_line import parse
from results.errors import InputError, print_error

log = logging.getLogger("submit")

SPLIT_UP = ["-m", "benchmarks", "all"]


@dataclass
class Options:
    """Send a command through submitit. The command follows `--`."""

    cluster: Literal["local", "slurm"] = "local"
    folder: Path = Path("work/jobs")
    """logs and submissions"""
    minutes: int = 24 * 60
    """time limit of one job; one that needs longer is queued again"""
    requeues: int = 10
    """how many times a job may run out of its time"""
    gpus: int = 0
    cpus: int = 2
    memory_gb: int | None = None
    partition: str | None = None
    parallel: int = 1
    """number of jobs that run at the same time"""
    together: bool = False
    """run `python -m benchmarks all` as one job"""
    then: str = "make pages"
    """command that runs when the last job has ended; empty for none"""


@dataclass
class Command(Checkpointable):
    """A command line as a job. When the cluster wants the machine back, the command is stopped and queued again."""

    arguments: list[str]
    process: Any = field(default=None, repr=False)

    def __call__(self) -> int:
        self.process = subprocess.Popen(self.arguments)  # noqa: S603 - the user's own command
        # Popen.wait() would hold its lock when the signal comes, and `checkpoint` could not wait for the end.
        while (code := self.process.poll()) is None:
            time.sleep(0.2)
        if code:
            raise RuntimeError(f"{shlex.join(self.arguments)} ended with exit code {code}")
        return 0

    def checkpoint(self, *args: Any, **kwargs: Any) -> DelayedSubmission:
        if self.process is not None and self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(20)
            except subprocess.TimeoutExpired:
                self.process.kill()
        return DelayedSubmission(Command(self.arguments))


def main(arguments: list[str] | None = None) -> int:
    arguments = sys.argv[1:] if arguments is None else arguments
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    at = arguments.index("--") if "--" in arguments else len(arguments)
    command = arguments[at + 1 :]
    try:
        options = parse(Options, arguments[:at], "scripts/submit.py")
        if not command:
            raise InputError("no command; write it after --, as in: submit.py -- python -m benchmarks …")
        if command[0] in ("python", "python3"):
            command[0] = sys.executable  # a node's own may be another
        commands = [command] if options.together else split_up(command)
    except InputError as error:
        return print_error("submit", error)
    then = shlex.split(options.then)
    return (_slurm if options.cluster == "slurm" else _local)(options, commands, then)


def split_up(command: list[str]) -> list[list[str]]:
    """`python -m benchmarks all …` as one command per encoder and benchmark; any other command as it is."""
    at = next((i for i in range(len(command)) if command[i : i + 3] == SPLIT_UP), None)
    if at is None:
        return [command]
    from benchmarks.__main__ import AllFlags, parse_flags, suite
    from benchmarks.encoders.load import expand
    from benchmarks.evaluate import Attempt, unique_names

    flags = parse_flags("all", AllFlags, command[at + 3 :])[0]
    named = unique_names(expand(flags.encoder), flags.name, flags.facts)
    for found in named.values():
        if isinstance(found, Attempt):
            sys.stderr.write(f"submit: {found.encoder}: {found.detail}\n")
    # The last of two flags of one name holds.
    return [
        [*command, "--encoder", encoder, *(["--name", name] if name else []), "--only", question.protocol.id]
        for encoder, name in named.items()
        if not isinstance(name, Attempt)
        for question in suite(flags.data, flags.only)
    ]


def _executor(options: Options, **more: Any) -> submitit.AutoExecutor:
    limit = {f"{options.cluster}_max_num_timeout": options.requeues}
    executor = submitit.AutoExecutor(folder=options.folder / "%j", cluster=options.cluster, **limit)
    executor.update_parameters(
        name="encoder-bench",
        timeout_min=options.minutes,
        gpus_per_node=options.gpus,
        cpus_per_task=options.cpus,
        **more,
    )
    return executor


def _local(options: Options, commands: list[list[str]], then: list[str]) -> int:
    executor = _executor(options)

    def run(command: list[str]) -> bool:
        job = executor.submit(Command(command))
        log.info("job %s: %s", job.job_id, shlex.join(command))
        error = job.exception()  # waits
        if error is not None:
            log.error("job %s failed; its log is %s", job.job_id, job.paths.stderr)
        return error is None

    with ThreadPoolExecutor(options.parallel) as pool:
        ended = list(pool.map(run, commands))
    log.info("%d of %d jobs succeeded", sum(ended), len(ended))
    code = subprocess.run(then, check=False).returncode if then else 0  # noqa: S603 - the user's own command
    return code or (0 if all(ended) else 1)


def _slurm(options: Options, commands: list[list[str]], then: list[str]) -> int:
    where: dict[str, Any] = {"slurm_partition": options.partition} if options.partition else {}
    if options.memory_gb:
        where["mem_gb"] = options.memory_gb
    executor = _executor(options, slurm_array_parallelism=options.parallel, **where)
    with executor.batch():  # one array
        jobs = [executor.submit(Command(command)) for command in commands]
    for job, command in zip(jobs, commands, strict=True):
        log.info("job %s: %s", job.job_id, shlex.join(command))
    if then:
        arrays = sorted({job.job_id.partition("_")[0] for job in jobs})
        last = _executor(options, slurm_additional_parameters={"dependency": f"afterany:{':'.join(arrays)}"}, **where)
        job = last.submit(Command(then))
        log.info("job %s, when they have ended: %s", job.job_id, shlex.join(then))
    return 0


if __name__ == "__main__":
    sys.exit(main())
