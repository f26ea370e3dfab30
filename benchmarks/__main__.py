"""The command line: `encoder-bench COMMAND`, or `python -m benchmarks COMMAND`."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, make_dataclass, replace
from pathlib import Path
from typing import Annotated, Any, get_args

import tyro

from benchmarks.datasets.registry import almost_image_folder, find_dataset, is_embedded, is_image_folder, missing_data
from benchmarks.encoders.forms import expand, refuse_at_sight
from benchmarks.evaluate import Attempt, Question, Sweep, bench, require_writable, resolve_device
from benchmarks.registry import TASK_NAMES, TASKS, AnyTask, find_protocol, load_task, matching_protocols, with_settings
from benchmarks.task import InputError, Precision, RunOptions
from results.command_line import first_sentence, missing_extra, parse, split_command, start_program
from results.errors import first_line, is_out_of_memory, print_error, sentence_about
from results.options import GROUPS as RESULT_COMMANDS
from results.options import Verify
from results.schema import Geometry, Protocol

log = logging.getLogger("benchmarks")

PROGRAM = "encoder-bench"


@dataclass(frozen=True)
class BenchFlags:
    """What every benchmark command takes."""

    encoder: tuple[str, ...]
    """checkpoint of any known layout, a glob of them, torchvision:ARCH[:FILE], timm:NAME[:FILE], hf:FOLDER,
    random:ARCH[:SEED], package:efficientnet-lite0, pixels, or my_package.my_module:build; one or several"""
    data: Path = Path("work/data")
    """root of the data sets, or an image folder with train/ and val/"""
    protocol: str | None = None
    """protocol id, such as knn.mmselfsup@1; default: the published one, or the small one on embedded data"""
    settings: Annotated[tuple[str, ...], tyro.conf.arg(name="set")] = ()
    """settings of the protocol to change, such as epochs=10 batch_size=128; the record's id shows them"""
    trials: int | None = None
    """number of runs with different seeds, reported as mean and spread; short for --set trials=N"""
    dataset: str | None = None
    """data set to use instead of the protocol's, such as imagefolder"""
    name: str | None = None
    """name of the encoder in tables"""
    facts: tuple[str, ...] = ()
    """facts that the keys do not show, such as channels=BGR stride_in_1x1=true architecture=resnet50 pick=teacher"""
    threads: int | None = None
    """CPU threads of this process; default: torch's"""
    dry_run: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """print what would run, what is missing and what the run needs, and stop"""

    def __post_init__(self) -> None:
        """Raises InputError for a number that cannot be used."""
        if self.threads is not None and self.threads < 1:
            raise InputError(f"--threads must be at least 1, got {self.threads}")


@dataclass(frozen=True)
class AllFlags(BenchFlags):
    """Run every benchmark whose data is there."""

    only: tuple[str, ...] = ()
    """protocol ids or patterns, such as 'knn.*' 'voc07_*'; default: the published variant of every benchmark, or the
    small one on embedded data"""


@dataclass(frozen=True)
class FrozenFlags(BenchFlags):
    """Measure kNN, logistic regression, class means, few-shot, and where the data is there the SVMs.

    All on stored features, with one pass over the images of each split: `encoder-bench frozen ENCODER DATA`.
    """


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command and return its exit code: 2 and a message on stderr where the input cannot be used."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    start_program()
    logging.getLogger("faiss").setLevel(logging.WARNING)  # it tells of builds that it tries and does not find
    try:
        if words[:1] and words[0] in TASK_NAMES:
            return _bench_command(words[0], words[1:])
        command, rest = split_command(_groups(), words, PROGRAM, "Measure pretrained image encoders.")
        return COMMANDS[command].run(rest)
    except ModuleNotFoundError as error:
        return print_error(PROGRAM, missing_extra(error))
    except (InputError, OSError, KeyboardInterrupt) as error:
        return print_error(PROGRAM, error)
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        return print_error(PROGRAM, InputError("out of memory: end other programs, or take a machine with more memory"))


def _groups() -> dict[str, dict[str, str]]:
    """Commands and their sentences by the heading of their group."""
    groups = {heading: dict(sentences) for heading, sentences in TASKS.items()}
    for name, command in COMMANDS.items():
        groups.setdefault(command.group, {})[name] = command.sentence
    return groups


# ---- benchmarks ------------------------------------------------------------------------------------------------------


def _parse(kind: Any, arguments: Sequence[str], command: str) -> Any:
    return parse(kind, list(arguments), f"{PROGRAM} {command}")


def _bench_command(name: str, arguments: Sequence[str]) -> int:
    """One benchmark on every encoder."""
    kind = load_task(name)
    flags, options, task = parse_flags(name, BenchFlags, arguments, kind)
    if kind.suite and flags.protocol is None:
        return _run(_sweep(replace(flags, dataset=None), options, _suite_questions(task, flags)), flags, summary=True)
    return _run(_sweep(flags, options, [_question(task, flags)]), flags)


def _suite_questions(task: AnyTask, flags: BenchFlags) -> list[Question]:
    """The protocols of every data set of a suite, each skipped where its data is not there."""
    variant = task.demo_variant if is_embedded(flags.data) else task.suite_variant()
    found = [p for p in task.protocols if p.variant == variant and flags.dataset in (None, p.dataset)]
    if not found:
        known = ", ".join(dict.fromkeys(p.dataset for p in task.protocols if p.variant == variant))
        raise InputError(f"{task.name} has no data set {flags.dataset!r}; it has {known}")
    return [Question(task, _changed(p, flags), optional=flags.dataset is None) for p in found]


@dataclass(frozen=True)
class _NoTask:
    """A command that runs several benchmarks has no flags of one."""


def parse_flags(
    command: str, flags: type[BenchFlags], arguments: Sequence[str], task: type[Any] = _NoTask
) -> tuple[Any, RunOptions, Any]:
    """The flags of a command: its own, the run's options, and the benchmark's own as an instance of its class.

    ENCODER and DATA may stand first without their flags.
    """
    flat = tyro.conf.arg(name="")
    fields = {"flags": flags, "options": RunOptions, "task": task}
    kind = make_dataclass(command, [(name, Annotated[each, flat]) for name, each in fields.items()], frozen=True)
    kind.__doc__ = flags.__doc__ if task is _NoTask else task.__doc__
    parsed = _parse(kind, _with_flags(arguments), command)
    stated = {name: value for name, _, value in (text.partition("=") for text in parsed.flags.settings)}
    precision = stated.get("precision")
    options = parsed.options.with_precision(precision if precision in get_args(Precision) else None)
    return parsed.flags, options, parsed.task


def _question(task: AnyTask, flags: BenchFlags) -> Question:
    """The protocol that the flags ask of a task."""
    if flags.protocol is None:
        dataset = flags.dataset or ("imagefolder" if is_image_folder(flags.data) else None)
        embedded = is_embedded(flags.data) and dataset is None
        protocol = task.default_protocol(embedded=embedded, dataset=dataset)
    else:
        protocol = find_protocol(flags.protocol)
        if protocol.harness != task.name:
            raise InputError(f"{protocol.id} is run by `{PROGRAM} {protocol.harness}`, not {task.name}")
    return Question(task, _changed(protocol, flags))


def _changed(protocol: Protocol, flags: BenchFlags, *, trials_everywhere: bool = True) -> Protocol:
    settings = flags.settings
    if flags.trials is not None and (trials_everywhere or "trials" in protocol.params):
        settings = (*settings, f"trials={flags.trials}")
    return with_settings(protocol, settings) if settings else protocol


def _all_changed(questions: Sequence[Question], flags: BenchFlags) -> list[Question]:
    """The questions with the settings of the flags; --trials changes those that have trials."""
    return [replace(q, protocol=_changed(q.protocol, flags, trials_everywhere=False)) for q in questions]


def _all(arguments: Sequence[str]) -> int:
    """Every benchmark whose data is there, on every encoder; then a summary."""
    flags, options, _ = parse_flags("all", AllFlags, arguments)
    questions = suite(flags.data, flags.only or ((flags.protocol,) if flags.protocol else ()))
    return _run(_sweep(flags, options, _all_changed(questions, flags)), flags, summary=True)


def suite(data: Path, only: Sequence[str] = ()) -> list[Question]:
    """What `all` asks of an encoder: the protocols that match, or of every benchmark the variant that suits the data.

    Raises:
        InputError: a pattern that matches no protocol.
    """
    found = matching_protocols(only or ["*"])
    if not only and is_image_folder(data):
        found = [(task, protocol) for task, protocol in found if protocol.dataset == "imagefolder"]
    elif not only:
        embedded = is_embedded(data)
        found = [
            (task, protocol)
            for task, protocol in found
            if protocol.variant == (task.demo_variant if embedded else task.protocols[0].variant)
            and protocol.dataset != "imagefolder"
        ]
    return [Question(task, protocol, optional=True) for task, protocol in found]


# One pass over the images serves the first four; the SVMs follow where their data is there.
FROZEN_TASKS = ("knn", "logistic", "ncm", "few-shot", "voc-svm", "low-shot-svm")


def _frozen(arguments: Sequence[str]) -> int:
    """Everything that stored features can tell, for one pass over the images: states its plan, then carries it out."""
    flags, options, _ = parse_flags("frozen", FrozenFlags, arguments)
    if flags.protocol:
        raise InputError(
            "frozen takes no --protocol, because it chooses protocols that share their features; "
            f"use `{PROGRAM} knn --protocol` or another benchmark"
        )
    sweep = _sweep(flags, options, _all_changed(frozen_suite(flags.data, flags.dataset), flags))
    from benchmarks.estimate import plan

    planned: list[Attempt] = []
    for line in plan(sweep, planned):
        sys.stdout.write(line + "\n")
    sys.stdout.flush()
    if flags.dry_run or not any(attempt.status in ("done", "cached") for attempt in planned):
        return _ended(planned)
    return _run(sweep, flags, summary=True)


def frozen_suite(data: Path, dataset: str | None = None) -> list[Question]:
    """What `frozen` asks of an encoder: of each benchmark the protocol that shares its features with kNN's.

    Raises:
        InputError: no benchmark has a protocol for the data set.
    """
    embedded = dataset is None and is_embedded(data)
    wanted = dataset or ("imagefolder" if is_image_folder(data) else "imagenet")
    shape: Geometry | None = None
    found = []
    for name in FROZEN_TASKS:
        task = load_task(name)()
        own = (
            [p for p in task.protocols if p.variant == task.demo_variant]
            if embedded
            else [p for p in task.protocols if p.dataset == wanted]
        )
        if not own and name.endswith("-svm") and wanted == "imagenet":
            own = list(task.protocols[:1])  # on data of its own, where that is there
        if not own:
            continue
        shape = shape or own[0].geometry
        chosen = next((p for p in own if p.geometry == shape), own[0])
        found.append(Question(task, chosen, optional=True))
    if not found:
        raise InputError(
            f"frozen has no protocol for {wanted}; use --dataset imagefolder, or one of {', '.join(TASK_NAMES)}"
        )
    return found


def _with_flags(arguments: Sequence[str]) -> list[str]:
    """The words of a command whose ENCODER and DATA may stand first without their flags."""
    given = []
    for flag, word in zip(("--encoder", "--data"), arguments, strict=False):
        if word.startswith("-"):
            break
        given += [flag, word]
    return [*given, *arguments[len(given) // 2 :]]


DENSE = ("seg-linear-cached", "seg-incontext", "seg-logistic", "seg-knn")


def _probes(arguments: Sequence[str]) -> int:
    """The probes of one pass over the images: AvgPool, Feature1–5, and on own or embedded data the attentive one."""

    def names(data: Path) -> tuple[str, ...]:
        # The published attentive probes have views, batches and epochs of their own, so nothing would be shared.
        if is_image_folder(data):  # which multihead has no protocol for
            return "linear", "attentive"
        return ("linear", "multihead", "attentive") if is_embedded(data) else ("linear", "multihead")

    return _together("probes", arguments, names, "linear, multihead or attentive")


def _dense(arguments: Sequence[str]) -> int:
    """The segmentations on stored patch features, which are extracted in one pass over the images."""
    # Two are enough for a look at the embedded scenes, and take a minute for eight encoders.
    return _together("dense", arguments, lambda data: DENSE[:2] if is_embedded(data) else DENSE, ", ".join(DENSE))


def _together(command: str, arguments: Sequence[str], names: Callable[[Path], Sequence[str]], each: str) -> int:
    """Several benchmarks, each by its default protocol.

    Args:
        names: the benchmarks for the data in a folder.
        each: all of them, for a message.
    """
    flags, options, _ = parse_flags(command, BenchFlags, arguments)
    if flags.protocol:
        raise InputError(f"{command} takes no --protocol; to choose one, run {each} instead")
    return _run(_sweep(flags, options, [_question(load_task(name)(), flags) for name in names(flags.data)]), flags)


def _run(sweep: Sweep, flags: BenchFlags, *, summary: bool = False) -> int:
    """Measure, or say what would be measured, and report what failed."""
    if flags.dry_run:
        from benchmarks.estimate import dry_run

        planned: list[Attempt] = []
        for line in dry_run(sweep, planned):
            sys.stdout.write(line + "\n")
        return _ended(planned)
    attempts, started = [], time.monotonic()
    for attempt in bench(sweep):
        attempts.append(attempt)
        if summary and attempt.status == "skipped":  # nothing was waited for, and the summary says it
            continue
        brief = attempt
        if attempt.status in ("failed", "skipped"):  # in full at the end
            brief = replace(attempt, detail=first_line(attempt.detail) if summary else "")
        log.info("%s  %s", attempt.status, _attempt_line(brief))
    if summary:
        sys.stdout.write(summary_text(attempts, flags.data) + time_text(attempts, time.monotonic() - started))
        return _ended(attempts)
    for attempt in attempts:
        if attempt.status in ("failed", "skipped"):
            skipped = "skipped: " if attempt.status == "skipped" else ""
            print_error(PROGRAM, InputError(skipped + sentence_about(attempt.encoder, attempt.detail)))
    return exit_code(attempts)


def _ended(attempts: Sequence[Attempt]) -> int:
    """The exit code, after a sentence where nothing can be measured and each reason has been given."""
    if attempts and all(attempt.status == "skipped" for attempt in attempts):
        sys.stdout.flush()
        return print_error(PROGRAM, InputError("nothing can be measured here, for the reasons above"))
    return exit_code(attempts)


def _sweep(flags: BenchFlags, options: RunOptions, questions: Sequence[Question]) -> Sweep:
    """What the flags ask, with the device that the run has.

    Raises:
        InputError: no encoder can be loaded, no data is there, or a folder cannot be written. That is said before
            torch is imported, which takes seconds.
    """
    encoders = _encoders(flags, questions)
    if not flags.dry_run:
        require_writable(options)
    if flags.threads is not None:
        import torch

        torch.set_num_threads(flags.threads)
    options = replace(options, device=resolve_device(options.device))
    return Sweep(encoders, questions, flags.data, options, flags.name, flags.dataset, flags.facts)


def _encoders(flags: BenchFlags, questions: Sequence[Question]) -> list[str]:
    """The encoders, with globs replaced; raises what `_sweep` names."""
    encoders = expand(flags.encoder, flags.name)
    refuse_at_sight(encoders, flags.facts)
    if not flags.data.is_dir():
        raise InputError(
            f"{flags.data} is not a folder; set --data to the root of the data sets, or compose the embedded data: "
            f"{PROGRAM} demo-data --out work/data"
        )
    missing = []
    for name in dict.fromkeys(flags.dataset or question.protocol.dataset for question in questions):
        try:
            find_dataset(name, flags.data)
        except InputError as error:
            missing.append(error)
        else:
            return encoders
    raise _no_data(flags.data, missing, questions)


def _no_data(data: Path, missing: Sequence[InputError], questions: Sequence[Question]) -> InputError:
    """What to say of a folder that has none of the data sets that a command asks for."""
    if is_image_folder(data.parent):
        return InputError(f"{data} is a part of an image folder; give the folder above it: --data {data.parent}")
    if fault := almost_image_folder(data):
        return InputError(fault)
    if len(missing) == 1:
        return missing[0]
    takes_image_folders = any(p.dataset == "imagefolder" for question in questions for p in question.task.protocols)
    return InputError(
        f"{data} {'is no image folder with train/ and val/, and ' if takes_image_folders else ''}has none of the data "
        f"sets of these benchmarks; {PROGRAM} check-data --data {data} lists what is there and where to get the rest"
    )


def exit_code(attempts: Sequence[Attempt]) -> int:
    """0, or 1 where the program failed, or 2 where the input could not be used or nothing could be measured.

    Without attempts it is 0: of a dry run under torchrun only the first rank speaks.
    """
    failed = [attempt for attempt in attempts if attempt.status == "failed"]
    if failed:
        return 2 if all(attempt.user_error for attempt in failed) else 1
    return 2 if attempts and all(attempt.status == "skipped" for attempt in attempts) else 0


def summary_text(attempts: Sequence[Attempt], data: Path) -> str:
    """A line per attempt, grouped by what became of it; of what was skipped, a line per reason."""
    lines = []
    for status in ("done", "cached", "skipped", "failed"):
        own = [attempt for attempt in attempts if attempt.status == status]
        if own:
            lines.append(f"{status}: {len(own)}")
            each = _reasons(own, data) if status == "skipped" else map(_attempt_line, own)
            lines += [f"  {line}" for line in each]
    return "\n".join(lines) + "\n"


def _attempt_line(attempt: Attempt) -> str:
    detail = " ".join(attempt.detail.split())
    if detail and not attempt.protocol:  # why the encoder could not be loaded
        return sentence_about(attempt.encoder, detail)
    return "  ".join(filter(None, (attempt.encoder, attempt.protocol, detail)))


def _reasons(skipped: Sequence[Attempt], data: Path) -> list[str]:
    """Why protocols were skipped. Those whose data is not there are the same for every encoder, and share a line."""
    lacking = {attempt.protocol: attempt.missing for attempt in skipped if attempt.missing}
    protocols: dict[str, list[str]] = {}
    for attempt in skipped:
        if not attempt.missing:
            reason = " ".join(attempt.detail.split()).removesuffix(f", which {attempt.protocol} reads")
            protocols.setdefault(sentence_about(attempt.encoder, reason), []).append(attempt.protocol)
    lines = [f"{reason}: {', '.join(ids)}" for reason, ids in protocols.items()]
    return [*lines, missing_data(lacking.values(), data)] if lacking else lines


def time_text(attempts: Sequence[Attempt], elapsed: float) -> str:
    """A line with the seconds of each phase over all records that were measured now; nothing without any.

    Args:
        elapsed: seconds of everything, such as reading data and extracting features, which are no phase of a record.
    """
    done = [attempt.timing for attempt in attempts if attempt.status == "done"]
    phases: dict[str, float] = {}
    for timing in done:
        for phase, seconds in timing.items():
            if phase not in ("total", "extract"):
                phases[phase] = phases.get(phase, 0.0) + seconds
    if not phases:
        return ""
    parts = {**phases, "features and all else": max(0.0, elapsed - sum(phases.values()))}
    listed = ", ".join(f"{phase} {seconds:.1f} s" for phase, seconds in parts.items())
    return f"time: {elapsed:.1f} s for {len(done)} record{'s' * (len(done) != 1)}: {listed}\n"


# ---- other commands --------------------------------------------------------------------------------------------------


def _protocols(arguments: Sequence[str]) -> int:
    """List protocols that match a pattern, or show one with its sources."""
    words = [word for word in arguments if word not in ("-h", "--help")]
    if len(words) != len(arguments) or len(words) > 2 or (len(words) == 2 and words[0] != "show"):
        sys.stdout.write(f"usage: {PROGRAM} protocols [PATTERN or COMMAND]\n       {PROGRAM} protocols show ID\n")
        return 0 if len(words) != len(arguments) else 2
    if words[:1] == ["show"]:
        if len(words) == 1:
            raise InputError("protocols show needs an id, such as knn.mmselfsup@1")
        sys.stdout.write(described(find_protocol(words[1])))
        return 0
    pattern = words[0] if words else "*"
    if pattern in TASK_NAMES:
        rows = [(p.id, p.harness, p.dataset, p.source.repository) for p in load_task(pattern).protocols]
    else:
        found = matching_protocols([pattern if any(c in pattern for c in "*?[") else f"{pattern}*"])
        rows = [(p.id, p.harness, p.dataset, p.source.repository) for _, p in found]
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    for row in rows:
        padded = [f"{cell:<{width}}" for cell, width in zip(row, widths, strict=False)]
        sys.stdout.write("  ".join([*padded, row[3]]) + "\n")
    return 0


def described(protocol: Protocol) -> str:
    """Every field of a protocol, one per line."""
    source = protocol.source
    lines = {
        "id": protocol.id,
        "command": f"{PROGRAM} {protocol.harness} --protocol {protocol.id}",
        "data": f"{protocol.dataset}: {protocol.train_split} -> {protocol.test_split}",
        "geometry": _shape(protocol.geometry),
        **({"of test": _shape(protocol.test_geometry)} if protocol.test_geometry else {}),
        "columns": ", ".join(protocol.columns),
        "primary": protocol.primary,
        "metric": f"{protocol.metric}, {'higher' if protocol.higher_is_better else 'lower'} is better",
        "selection": protocol.selection,
        "source": f"{source.repository} {source.revision}".strip(),
        **({"note": source.note} if source.note else {}),
        "hash": protocol.content_sha256(),
    }
    text = "".join(f"{name:<10} {value}\n" for name, value in lines.items())
    return text + "params\n" + "".join(f"  {name} = {value}\n" for name, value in protocol.params.items())


def _shape(shape: Geometry) -> str:
    border = f"border {shape.border} cut off, " if shape.border else ""
    return f"{border}{shape.mode}, resize {shape.resize}, crop {shape.crop}, {shape.interpolation}"


@dataclass(frozen=True)
class Command:
    """A command that is no benchmark.

    Attributes:
        sentence: what it does, for the help page.
        run: takes the words after its name and returns the exit code.
    """

    group: str
    sentence: str
    run: Callable[[Sequence[str]], int]


def _function(name: str) -> Callable[[Sequence[str]], int]:
    """A command whose function's annotated arguments are the flags; ENCODER and DATA of audit may stand first."""
    return lambda words: int(_parse(_imported(name), _with_flags(words) if name == "audit" else words, name))


def _imported(name: str) -> Any:
    """The function of a command; most need torch, so each is imported when it runs."""
    match name:
        case "audit":
            from benchmarks import audit

            return audit.command
        case "check-data":
            from benchmarks.datasets import check

            return check.command
        case "demo-data":
            from benchmarks.demo import compose

            return compose.command
        case "random-encoder":
            from benchmarks.encoders import load

            return load.random_encoder_command
        case "features-gc":
            from benchmarks.features import store

            return store.features_gc_command
        case _:
            from benchmarks import explain

            return explain.why_command if name == "why" else explain.explain_command


@dataclass(frozen=True)
class ConvertFlags:
    """Write the backbone of a checkpoint for another library, with the same weights."""

    source: tyro.conf.Positional[str]
    """checkpoint, or any other form that `--encoder` takes"""
    out: tyro.conf.Positional[Path]
    """file to write: .pkl for detectron2, .pth for openmmlab and torchvision, .safetensors for this project"""
    to: str
    """detectron2, openmmlab, torchvision or safetensors"""
    name: str | None = None
    """name of the encoder in tables"""
    facts: tuple[str, ...] = ()
    """facts that the checkpoint's keys do not show, such as channels=BGR stride_in_1x1=true"""
    force: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """replace OUT if it exists"""


def _convert(arguments: Sequence[str]) -> int:
    """Convert a checkpoint; the settings that the other library must be told are printed."""
    flags = _parse(ConvertFlags, arguments, "convert")
    from typing import get_args

    from benchmarks.encoders.export import CheckpointFormat, convert

    targets = get_args(CheckpointFormat)
    if flags.to not in targets:
        raise InputError(f"--to must be one of {', '.join(targets)}, got {flags.to}")
    convert(flags.source, flags.out, flags.to, name=flags.name, facts=flags.facts, force=flags.force)
    return 0


def _results(name: str) -> Callable[[Sequence[str]], int]:
    """A command of `python -m results`."""

    def run(arguments: Sequence[str]) -> int:
        from results.__main__ import main as results_main

        return results_main([name, *arguments], PROGRAM)

    return run


def _verify(arguments: Sequence[str]) -> int:
    """As `python -m results verify`, and every protocol must be the declared one."""
    from results.commands import verify_command

    declared = {protocol.id: protocol.content_sha256() for _, protocol in matching_protocols(["*"])}
    return verify_command(_parse(Verify, arguments, "verify"), declared)


def _script(name: str, *words: str) -> Callable[[Sequence[str]], int]:
    """A script of the checkout, or of the wheel, where the folder `scripts` has a name that no other project uses.

    Args:
        words: come before those of the user.
    """

    def run(arguments: Sequence[str]) -> int:
        import runpy

        root = Path(__file__).parents[1]
        package = "encoder_bench_scripts" if (root / "encoder_bench_scripts").is_dir() else "scripts"
        sys.path.insert(0, str(root))
        sys.argv[1:] = [*words, *arguments]
        try:  # as __main__, whose classes go into a job by value
            runpy.run_module(f"{package}.{name}", run_name="__main__", alter_sys=True)
        except SystemExit as end:
            if isinstance(end.code, int | None):
                return end.code or 0
            raise
        return 0

    return run


COMMANDS: Mapping[str, Command] = {
    "all": Command("Several benchmarks", "Run every benchmark whose data is there, and print a summary.", _all),
    "frozen": Command("Several benchmarks", "Run kNN, logistic regression, few-shot and SVMs on stored features.",
                      _frozen),
    "probes": Command("Several benchmarks", "Run linear, multihead and attentive in one pass over the images.",
                      _probes),
    "dense": Command("Several benchmarks", "Run the segmentations on stored patch features, in one pass.", _dense),
    "protocols": Command("Protocols", "List protocols, or show one with every number and its source.", _protocols),
    "explain": Command("Protocols", "Measure the protocols between two, to take their difference apart.",
                       _function("explain")),
    "why": Command("Protocols", "Say why a score differs from a published one, setting by setting.",
                   _function("why")),
    "audit": Command("Encoders and data", "Check that an encoder is what its card says.", _function("audit")),
    "check-data": Command("Encoders and data", "Say which data sets are there, missing or damaged.",
                          _function("check-data")),
    "demo-data": Command("Encoders and data", "Compose the embedded data sets.", _function("demo-data")),
    "random-encoder": Command("Encoders and data", "Write an untrained encoder to a file.",
                              _function("random-encoder")),
    "convert": Command("Encoders and data", "Write a checkpoint's backbone for another library.", _convert),
    "index-shards": Command("Encoders and data", "Count the images of tar shards and write their index.",
                            _script("prepare", "index-shards")),
    "prepare-voc12aug": Command("Encoders and data", "Make the masks and lists of VOC 2012 aug from SBD.",
                                _script("prepare", "prepare-voc12aug")),
    "features-gc": Command("Encoders and data", "List stored features that no record refers to.",
                           _function("features-gc")),
    **{name: Command("Results", first_sentence(kind), _results(name))
       for group in RESULT_COMMANDS.values() for name, kind in group.items() if name not in ("explain", "verify")},
    "verify": Command("Results", first_sentence(Verify), _verify),
    "submit": Command("Machines", "Send a command to Slurm, or to processes of this machine.", _script("submit")),
    "speed": Command("Machines", "Time the hot loops against what people use today.", _script("speed")),
    "bench-loader": Command("Machines", "Time the input pipeline of a recipe.", _script("prepare", "bench-loader")),
    "cost-table": Command("Machines", "Measure time and memory of a training step of each mechanism.",
                          _script("prepare", "cost-table")),
}  # fmt: skip


if __name__ == "__main__":
    # Under a profiler sys.modules["__main__"] is the profiler, where the annotations of the flags cannot be resolved.
    from benchmarks.__main__ import main as main_of_module

    sys.exit(main_of_module())
