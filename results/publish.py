"""Check records against themselves, and copy them from the git-ignored folder of local runs to the committed records.

`encoder-bench verify` is what a pull request with new records must pass. A record is right if its hashes hold, its
scores and standard errors are those that its outcomes give, its protocol is the declared one, and its folder is that of
its encoder, weights and data. Of a benchmark that keeps no outcomes the scores cannot be checked, and the result says
so. Compared with a git revision, it must also keep the records that are there.
"""

from __future__ import annotations

import math
import os
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

from results.bootstrap import Outcomes, measured_columns, replicates, size_of
from results.errors import InputError
from results.families import family_of
from results.schema import Record
from results.store import BadRecord, StoredRecord, copy_record, is_copied, measured_column, read_records, record_path

# Scores and outcomes are computed apart from each other, in another order of sums and sometimes in single precision.
VALUE_TOLERANCE = 2e-3  # of 100: less than what two printed decimals show
ERROR_TOLERANCE = 1e-6  # relative; the resamples are seeded


@dataclass(frozen=True)
class Verification:
    """What was found of one record.

    Attributes:
        faults: why it is refused; empty if it is right.
        scored: columns whose score was computed again.
        unscored: columns with a score that no outcomes stand behind.
    """

    path: Path
    faults: tuple[str, ...]
    scored: tuple[str, ...] = ()
    unscored: tuple[str, ...] = ()

    @property
    def text(self) -> str:
        if self.faults:
            return f"refused  {self.path}: {'; '.join(self.faults)}"
        if not self.scored:
            return f"hashes   {self.path}: hashes hold; this benchmark keeps no outcomes to compute the scores again"
        rest = f", {len(self.unscored)} without outcomes ({', '.join(self.unscored)})" if self.unscored else ""
        return f"right    {self.path}: {len(self.scored)} scores computed again{rest}"


def verify(stored: StoredRecord | BadRecord, declared: Mapping[str, str] | None = None) -> Verification:
    """Compute a record's scores again, and compare its hashes and its protocol.

    Args:
        declared: protocol id -> sha256 of the protocols that this program declares. A protocol that its user changed
            (`+epochs=10`) is not among them.
    """
    if isinstance(stored, BadRecord):
        return Verification(stored.path, (stored.reason,))
    record, faults = stored.record, list(stored.faults)
    resolved = record.protocol.resolved
    if record.status != "ok":
        faults.append(f"the run failed: {record.error or 'no error was recorded'}")
    if declared is not None and not resolved.overrides:
        known = declared.get(record.protocol.id)
        if known is None:
            faults.append(f"this program has no protocol {record.protocol.id}")
        elif known != record.protocol.sha256:
            faults.append(f"its protocol is not the {record.protocol.id} that this program declares")
    place = record_path(Path(), record.encoder, resolved, record.dataset, record.seeds).parent
    here = Path(*stored.path.absolute().parts[-1 - len(place.parts) : -1])
    if here != place:
        faults.append(f"it lies in {here}, but its encoder, weights and data belong in {place}; move it there")
    if faults:
        return Verification(stored.path, tuple(faults))
    outcomes = stored.outcomes()
    if outcomes is None:
        if record.outcomes_file is not None:
            return Verification(stored.path, ("its outcomes file cannot be read",))
        if family_of(resolved.benchmark).outcomes:
            return Verification(stored.path, ("it has no outcomes file, so its scores cannot be computed again",))
        return Verification(stored.path, (), (), tuple(record.scores))
    try:
        return _rescored(stored.path, record, outcomes)
    except (LookupError, ValueError, TypeError, ArithmeticError, MemoryError) as error:  # arrays of other kinds
        return Verification(stored.path, (f"its outcomes cannot be scored: {error}",))


def _rescored(path: Path, record: Record, outcomes: Outcomes) -> Verification:
    measured = measured_columns(outcomes)
    shown = record.filled_scores
    # A column that was chosen from others (a best layer) has the outcomes of the one with its value.
    behind = {column: measured_column(record, column, measured) for column in shown}
    scored = tuple(column for column in shown if behind[column] is not None)
    if not scored:
        return Verification(path, ("its outcomes belong to none of its scores",))
    return Verification(
        path,
        tuple(_differences(record, outcomes, {column: str(behind[column]) for column in scored})),
        scored,
        tuple(column for column in shown if behind[column] is None),
    )


def _differences(record: Record, outcomes: Outcomes, behind: Mapping[str, str]) -> Iterator[str]:
    drawn = replicates(outcomes, sorted(set(behind.values())))
    items = size_of(outcomes)[0]
    for column, source in behind.items():
        score = record.scores[column]
        scale = 100.0 if score.unit == "%" else 1.0
        value, error = scale * drawn[source].value, scale * drawn[source].standard_error
        stated = float(score.value if score.value is not None else math.nan)
        trials = record.trials(column) if f"iou/{source}" in outcomes else []
        # The areas of all trials lie in one sum, whose ratio is near the mean of the trials' and not equal to it.
        allowed = max(trials) - min(trials) if len(trials) > 1 else VALUE_TOLERANCE * scale / 100
        if len(trials) > 1 and not abs(sum(trials) / len(trials) - stated) <= VALUE_TOLERANCE * scale / 100:
            yield f"{column} is {stated:.4f}, but its trials have the mean {sum(trials) / len(trials):.4f}"
        elif not abs(value - stated) <= allowed:
            yield f"{column} is {stated:.4f}, but its outcomes give {value:.4f}"
        if score.n is not None and score.n != items:
            yield f"{column} states n = {score.n:,}, but its outcomes are of {items:,} items"
        if score.standard_error is not None and not math.isclose(
            score.standard_error, error, rel_tol=ERROR_TOLERANCE, abs_tol=ERROR_TOLERANCE
        ):
            yield f"the standard error of {column} is {score.standard_error:.4f}, but its outcomes give {error:.4f}"


def deleted_records(folder: Path, base: str, kept: Sequence[StoredRecord]) -> list[BadRecord]:
    """The records below a folder that are missing since HEAD left a git revision.

    A record whose place a newer one took, as `publish` does it, is not among them. An outcomes file that is missing
    while its record is still there is a fault of that record.

    Args:
        kept: the records that the folder holds.

    Raises:
        InputError: git cannot compare the folder with that revision.
    """

    def git(*arguments: str) -> bytes:
        command = ["git", "-C", str(folder), *arguments]
        return subprocess.run(command, capture_output=True, check=True).stdout  # noqa: S603

    try:
        fork = git("merge-base", base, "HEAD").decode().strip()
        deleted = git("diff", "-z", "--name-only", "--no-renames", "--relative", "--diff-filter=D", fork, "--", ".")
        contents = {name: git("show", f"{fork}:./{name}") for name in map(os.fsdecode, deleted.split(b"\0"))
                    if name.endswith(".json")}  # fmt: skip
    except FileNotFoundError as error:
        raise InputError(f"git is not installed, so {folder} cannot be compared with {base}") from error
    except subprocess.CalledProcessError as error:
        fault = " ".join(error.stderr.decode(errors="replace").split()) or "they have no commit in common"
        raise InputError(f"cannot compare {folder} with the git revision {base}: {fault}") from error
    newest: dict[tuple[object, ...], str] = {}
    for stored in kept:
        newest[_row(stored.record)] = max(stored.record.created, newest.get(_row(stored.record), ""))
    return [
        BadRecord(folder / name, f"{base} has this record and it was deleted; restore it and its outcomes file with "
                  f"`git checkout {base} -- FILE`")
        for name, content in contents.items()
        if not _is_replaced(content, newest)
    ]  # fmt: skip


def _is_replaced(content: bytes, newest: Mapping[tuple[object, ...], str]) -> bool:
    try:
        record = Record.model_validate_json(content)
    except ValueError:
        return False
    return newest.get(_row(record), "") >= record.created


# ---- publish-records


@dataclass(frozen=True)
class Publication:
    """What `publish` did; paths are relative to the folder of their records."""

    copied: tuple[Path, ...]
    unchanged: tuple[Path, ...]
    replaced: tuple[Path, ...]
    left_out: tuple[tuple[Path, str], ...]


def publish(
    local_root: Path, published_root: Path, encoders: Sequence[str] = ("*",), *, overrides: bool = False,
    dry_run: bool = False,
) -> Publication:  # fmt: skip
    """Copy records with their outcomes files, byte for byte.

    A newer record replaces the published one of the same encoder (name, initialisation and architecture), data set and
    protocol; an older one never does. Left out are failed, edited and unreadable records, and those of protocols with
    overrides: trials, and the steps that `explain` measures between two protocols.

    Args:
        encoders: shell patterns of encoder names.
        overrides: publish records of protocols with overrides as well.
        dry_run: only report what would be done.

    Raises:
        InputError: one of the folders contains the other.
    """
    here, there_root = local_root.resolve(), published_root.resolve()
    if here.is_relative_to(there_root) or there_root.is_relative_to(here):
        raise InputError(
            f"{published_root} and {local_root} overlap, one contains the other; publish to a separate folder"
        )
    records, bad = read_records(local_root)
    left_out = [(b.path.relative_to(local_root), b.reason) for b in bad]
    newest: dict[tuple[object, ...], StoredRecord] = {}
    for stored in sorted(records, key=lambda s: (s.record.created, s.path)):
        record, place = stored.record, stored.path.relative_to(local_root)
        if not any(fnmatchcase(record.encoder.name, pattern) for pattern in encoders):
            continue
        if record.status == "failed":
            left_out.append((place, f"it failed: {record.error}"))
        elif not stored.intact:
            left_out.append((place, "; ".join(stored.faults)))
        elif record.protocol.resolved.overrides and not overrides:
            changed = ", ".join(record.protocol.resolved.overrides)
            left_out.append((place, f"its protocol was changed ({changed}); --overrides publishes it too"))
        else:
            older = newest.get(_row(record))
            if older is not None:
                reason = "a newer record has the same encoder, data and protocol"
                left_out.append((older.path.relative_to(local_root), reason))
            newest[_row(record)] = stored

    published = read_records(published_root)[0]
    for theirs in published:
        ours = newest.get(_row(theirs.record))
        if ours is not None and theirs.intact and theirs.record.created > ours.record.created:
            left_out.append((ours.path.relative_to(local_root), "the published record is newer"))
            del newest[_row(theirs.record)]
    copied: list[Path] = []
    unchanged: list[Path] = []
    for stored in newest.values():
        place = stored.path.relative_to(local_root)
        there = is_copied(stored, local_root, published_root)
        (unchanged if there else copied).append(place)
        if not there and not dry_run:
            copy_record(stored, local_root, published_root)
    replaced = [
        stored
        for stored in published
        if (new := newest.get(_row(stored.record))) is not None
        and stored.path.relative_to(published_root) != new.path.relative_to(local_root)
    ]
    gone = tuple(stored.path.relative_to(published_root) for stored in replaced)
    if not dry_run:
        for stored in replaced:
            _remove(stored, published_root)
    return Publication(tuple(sorted(copied)), tuple(sorted(unchanged)), gone, tuple(sorted(left_out)))


def _row(record: Record) -> tuple[object, ...]:
    """What identifies a published record."""
    card, dataset = record.encoder, record.dataset
    return card.name, card.init, card.architecture, dataset.id, dataset.own and dataset.fingerprint, record.protocol.id


def _remove(stored: StoredRecord, root: Path) -> None:
    stored.path.unlink()
    if stored.record.outcomes_file is not None:
        stored.path.with_name(stored.record.outcomes_file).unlink(missing_ok=True)
    for folder in list(stored.path.parents)[:3]:  # data set, weights, encoder
        if folder == root or any(folder.iterdir()):
            break
        folder.rmdir()
