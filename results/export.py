"""Write records in the formats in which others exchange results: `encoder-bench export`.

Formats: Hugging Face's `model-index` and `.eval_results/*.yaml` (hub-docs@242f4a1, huggingface_hub 2.4.0), the schema
of Every Eval Ever 0.3.0, and a model card. Each carries the value, n, the 95 % interval, the protocol and where its
numbers were read, and the hashes that tell which record it was. The same records give the same bytes.
"""

from __future__ import annotations

import hashlib
import json
import re
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np

from results.bootstrap import CONFIDENCE, RESAMPLES, Outcomes, measured_columns, percentile_interval, replicates
from results.errors import InputError
from results.families import family_of
from results.formats import Cell, Row, Table, escape_markdown, markdown
from results.options import Export
from results.rows import architecture_text, current, data_kind, identity, name_with_init
from results.schema import EncoderCard, Protocol, Record
from results.store import StoredRecord, measured_column, slug

Json = Any  # a JSON value

EVERY_EVAL_EVER = "0.3.0"
COLLECTION = "encoder-bench"
BOOTSTRAP = "Bayesian bootstrap over the sources of the test items"
NORMAL = "1.96 standard errors"
# The task names of the Hub, by the beginning of a benchmark's name. The first that fits counts.
HUB_TASKS = (
    (("voc0712_det", "voc07_det", "coco", "lvis", "cityscapes_mask_rcnn"), "object-detection", "Object detection"),
    (("voc12aug_", "cityscapes_fcn", "cityscapes_seg", "ade20k_"), "image-segmentation", "Image segmentation"),
    (("depth", "nyu"), "depth-estimation", "Depth estimation"),
    (("retrieval", "revisited", "copy", "label_free"), "image-feature-extraction", "Image feature extraction"),
    (("",), "image-classification", "Image classification"),
)


@dataclass(frozen=True)
class Interval:
    """A 95 % interval in the unit of its score, and how it was computed."""

    low: float
    high: float
    method: str


def exported(records: Sequence[StoredRecord], options: Export) -> dict[Path, str]:
    """The files of an export, by their path below the output folder.

    Raises:
        InputError: a record is damaged or failed, or the format needs something that was not given.
    """
    for stored in records:
        if not stored.intact:
            raise InputError(f"{stored.path}: {'; '.join(stored.faults)}; a damaged record is not exported")
    records = [stored for stored in current(records)[0] if stored.record.status == "ok" and stored.record.filled_scores]
    if not records:
        raise InputError("none of these records has a score to export")
    if options.to == "eval-results":
        return _eval_results_files(records, options)
    if options.to == "every-eval-ever":
        return _every_eval_ever_files(records, options)
    files: dict[Path, str] = {}
    for _, own in sorted(_by_encoder(records).items()):
        folder = Path(slug(name_with_init(own[0].record.encoder)))
        if folder / "README.md" in files or folder / "model-index.yaml" in files:
            folder = Path(f"{folder}-{(own[0].record.encoder.weights_sha256 or 'unloaded')[:8]}")
        if options.to == "model-index":
            files[folder / "model-index.yaml"] = yaml_text({"model-index": model_index(own, options)})
        else:
            files[folder / "README.md"] = model_card(own, options)
    return files


def _by_encoder(records: Sequence[StoredRecord]) -> dict[tuple[str, str], list[StoredRecord]]:
    groups: dict[tuple[str, str], list[StoredRecord]] = {}
    for stored in records:
        card = stored.record.encoder
        groups.setdefault((name_with_init(card), repr(identity(card))), []).append(stored)
    return groups


def intervals(stored: StoredRecord) -> dict[str, Interval]:
    """The 95 % interval of each score: from its outcomes, or else from its standard error; the rest have none.

    Raises:
        InputError: the outcomes are not those of the scores.
    """
    with _named(stored):
        record = stored.record
        outcomes: Outcomes = stored.outcomes() or {}
        measured = measured_columns(outcomes) if "group_offsets" in outcomes else ()
        behind = {column: measured_column(record, column, measured) for column in record.filled_scores}
        drawn = (
            replicates(outcomes, sorted({c for c in behind.values() if c is not None})) if any(behind.values()) else {}
        )
        found: dict[str, Interval] = {}
        for column, score in record.filled_scores.items():
            value, source, error = float(score.value or 0.0), behind[column], score.standard_error
            if source is not None:
                scale = 100.0 if score.unit == "%" else 1.0
                # around the score, because an average over trials need not be the outcomes' own value
                low, high = percentile_interval(drawn[source].resampled - drawn[source].value)
                if not np.isfinite([low, high]).all():
                    raise ValueError(f"those of {source} are not all finite")
                found[column] = Interval(value + scale * low, value + scale * high, BOOTSTRAP)
            elif error is not None:
                found[column] = Interval(value - 1.96 * error, value + 1.96 * error, NORMAL)
        return found


@contextmanager
def _named(stored: StoredRecord) -> Iterator[None]:
    """Name the record whose outcomes are not what a benchmark writes, although its hashes hold."""
    try:
        yield
    except (LookupError, ValueError, TypeError, ArithmeticError) as error:  # arrays of other kinds
        raise InputError(
            f"{stored.path}: its outcomes cannot be scored: {error}; measure it again with --force, or export the "
            "other records without it"
        ) from error


def hub_task(benchmark: str) -> tuple[str, str]:
    """The Hub's identifier and name of the task that a benchmark belongs to."""
    return next((kind, name) for starts, kind, name in HUB_TASKS if benchmark.startswith(starts))


def _protocol_source(record: Record) -> str:
    source = record.protocol.resolved.source
    return " ".join(text for text in (source.repository, source.revision, source.note) if text)


def _known(**values: Json) -> dict[str, Json]:
    return {name: value for name, value in values.items() if value is not None}


# ---- Hugging Face


def model_index(records: Sequence[StoredRecord], options: Export) -> Json:
    """The `model-index` entry of one encoder: a result per record, a metric per column.

    `metrics[].args` hold n, the interval and how the score was selected, and `dataset.args` what identifies protocol,
    data and record. `verified` is not set: only the Hub may set it.
    """
    results = []
    for stored in records:
        record, protocol = stored.record, stored.record.protocol.resolved
        kind, name = hub_task(protocol.benchmark)
        own = intervals(stored)
        metrics = []
        for column, score in record.filled_scores.items():
            args = _known(column=column, unit=score.unit, selection=score.selection, n=score.n,
                          standard_error=score.standard_error)  # fmt: skip
            if (found := own.get(column)) is not None:
                args |= {"interval_95": [found.low, found.high], "interval_method": found.method}
            metrics.append(
                {
                    "type": _metric_type(protocol, column),
                    "value": score.value,
                    "name": f"{family_of(protocol.benchmark).title}, {column}",
                    "config": record.protocol.id,
                    "args": args,
                }
            )
        dataset = {
            "type": options.hub_dataset or record.dataset.id,
            "name": record.dataset.shown_name,
            "split": protocol.test_split,
            "args": {
                "protocol": record.protocol.id,
                "protocol_sha256": record.protocol.sha256,
                "protocol_source": _protocol_source(record),
                "fingerprint": record.dataset.fingerprint,
                "embedded_demo_data": record.dataset.embedded,
                "record_sha256": record.sha256,
                "measured": record.created,
            },
        }
        result = {"task": {"type": kind, "name": name}, "dataset": dataset, "metrics": metrics}
        if options.source_url is not None:
            result["source"] = {"name": options.source_name or options.source_url, "url": options.source_url}
        results.append(result)
    return [{"name": name_with_init(records[0].record.encoder), "results": results}]


def _metric_name(protocol: Protocol, column: str) -> str:
    """The protocol's metric; of label-free measures the column, because their protocol's describes all of them."""
    return column if protocol.benchmark.startswith("label_free") else protocol.metric


def _metric_type(protocol: Protocol, column: str) -> str:
    """The metric without what qualifies it, as `mean_intersection_over_union`."""
    return slug(re.split(r"[,(]| over all ", _metric_name(protocol, column))[0].strip().lower())


def eval_results(records: Sequence[StoredRecord], options: Export) -> Json:
    """Entries of a `.eval_results` file: the primary column of each record.

    The format has no field for a metric's name, n or an interval: the task fixes the metric, and `notes` hold the rest.
    """
    entries = []
    for stored in records:
        record, column = stored.record, stored.record.protocol.resolved.primary
        score = record.filled_scores.get(column)
        if score is None:
            continue
        found = intervals(stored).get(column)
        parts = [f"{record.protocol.id}, {column}", f"{_metric_name(record.protocol.resolved, column)} in {score.unit}"]
        parts += [f"n = {score.n:,}"] if score.n is not None else []
        parts += [f"95% interval {found.low:.2f} to {found.high:.2f} ({found.method})"] if found else []
        parts += [f"selection: {score.selection}", f"record sha256 {record.sha256}"]
        entry = {
            "dataset": {"id": options.hub_dataset, "task_id": options.hub_task},
            "value": score.value,
            "date": record.created,
            "notes": "; ".join(parts),
        }
        if options.source_url is not None:
            entry["source"] = {"url": options.source_url, "name": options.source_name or options.source_url}
        entries.append(entry)
    return entries


def _eval_results_files(records: Sequence[StoredRecord], options: Export) -> dict[Path, str]:
    if options.hub_dataset is None or options.hub_task is None:
        raise InputError(
            "--to eval-results needs --hub-dataset and --hub-task: the Hub shows such a file only on the page of a "
            "data set that is registered there as a benchmark"
        )
    files = {}
    for _, own in sorted(_by_encoder(records).items()):
        protocols = {stored.record.protocol.id for stored in own}
        if len(protocols) > 1:
            raise InputError(
                f"a task of the Hub has one metric, but these records have {len(protocols)} protocols "
                f"({', '.join(sorted(protocols))}); export them one at a time"
            )
        card, task = own[0].record.encoder, slug(options.hub_task)
        weights = (card.weights_sha256 or "unloaded")[:8]
        path = Path(f"{slug(name_with_init(card))}-{weights}") / ".eval_results" / f"{task}.yaml"
        files[path] = yaml_text(eval_results(own, options))
    return files


# ---- a model card


def model_card(records: Sequence[StoredRecord], options: Export) -> str:
    """A model card in markdown, its front matter with `model-index`: what the encoder is and what was measured."""
    card = records[0].record.encoder
    metadata: dict[str, Json] = {**_licence(card), "tags": ["encoder-bench", "image-feature-extraction"]}
    metadata["model-index"] = model_index(records, options)
    facts = {
        "Architecture": architecture_text(card.architecture),
        "Pretraining": ", ".join(text for text in (card.method or "", card.pretrain_data or "", _epochs(card)) if text),
        "Weights": f"{card.source}; sha256 {card.weights_sha256}",
        "Input": f"{card.channels}, white is {card.value_range:g}, mean {_triple(card.mean)}, std {_triple(card.std)}",
        "Vector per image": card.embed,
        "Licence": card.licence or "not stated",
        "Only assumed": ", ".join(card.assumed) or "nothing",
        "Not shown by the keys": ", ".join(card.not_shown),
    }
    lines = [
        f"---\n{yaml_text(metadata)}---\n",
        f"# {escape_markdown(name_with_init(card))}\n",
        "".join(f"- **{name}**: {escape_markdown(text)}\n" for name, text in facts.items() if text),
        "## Results\n",
        "Written by `encoder-bench export` from records; `encoder-bench verify` computes the scores again from the "
        f"outcomes of each test item. Interval: {CONFIDENCE:.0%}, {BOOTSTRAP}, or {NORMAL} where a record has no "
        "outcomes. A number can be compared only with numbers of the same protocol and data.\n",
    ]
    kinds = dict.fromkeys(data_kind(stored.record) for stored in records)
    for kind in sorted(kinds, key=lambda kind: kind.title):
        own = [stored for stored in records if data_kind(stored.record) == kind]
        lines += [f"### {escape_markdown(kind.title)}\n", *([escape_markdown(kind.line) + "\n"] if kind.line else [])]
        lines.append(markdown(_results_table(own)))
    return "\n".join(lines)


def _results_table(records: Sequence[StoredRecord]) -> Table:
    rows = []
    for stored in records:
        record, own = stored.record, intervals(stored)
        protocol = record.protocol.resolved
        decimals = 3 if protocol.unit == "1" else 2
        for column, score in record.filled_scores.items():
            found = own.get(column)
            texts = (
                column,
                f"{score.value:.{decimals}f}{' %' if score.unit == '%' else ''}",
                f"{found.low:.{decimals}f} to {found.high:.{decimals}f}" if found else "unknown",
                "" if score.n is None else f"{score.n:,}",
                score.selection,
                record.protocol.id,
                record.dataset.shown_name,
            )
            title = f"{family_of(protocol.benchmark).title} ({_metric_name(protocol, column)})"
            rows.append(Row(title, tuple(Cell(text=text) for text in texts)))
    columns = ("Benchmark", "Column", "Score", "95% interval", "Test items", "Selection", "Protocol", "Data")
    return Table("", (), columns, tuple(rows))


def _licence(card: EncoderCard) -> dict[str, str]:
    """The Hub takes identifiers in small letters; any other text becomes the name of an `other` licence."""
    if card.licence is None:
        return {}
    identifier = card.licence.lower()
    if re.fullmatch(r"[a-z0-9][a-z0-9.-]*", identifier):
        return {"license": identifier}
    return {"license": "other", "license_name": card.licence}


def _epochs(card: EncoderCard) -> str:
    return f"{card.epochs:g} epochs" if card.epochs else ""


def _triple(values: Sequence[float]) -> str:
    return "(" + ", ".join(f"{value:g}" for value in values) + ")"


# ---- Every Eval Ever


def every_eval_ever(stored: StoredRecord, options: Export, samples: Samples | None = None) -> Json:
    """One record in the schema of Every Eval Ever; every `additional_details` value is a string, as it demands."""
    record, card = stored.record, stored.record.encoder
    protocol, dataset, own = record.protocol.resolved, record.dataset, intervals(stored)
    family, bound = family_of(protocol.benchmark), 100.0 if protocol.unit == "%" else 1.0
    results = []
    for column, score in record.filled_scores.items():
        uncertainty: dict[str, Json] = {}
        if score.standard_error is not None:
            uncertainty["standard_error"] = {"value": score.standard_error, "method": BOOTSTRAP}
        if (found := own.get(column)) is not None:
            interval = {"lower": found.low, "upper": found.high, "confidence_level": CONFIDENCE}
            uncertainty["confidence_interval"] = {**interval, "method": found.method}
            uncertainty |= {"num_bootstrap_samples": RESAMPLES} if found.method == BOOTSTRAP else {}
        uncertainty |= _known(standard_deviation=score.std, num_samples=score.n)
        results.append(
            {
                "evaluation_result_id": f"{record.sha256[:16]}/{column}",
                "evaluation_name": f"{record.protocol.id}: {column}",
                "source_data": _source_data(record, options),
                "evaluation_timestamp": record.created,
                "metric_config": {
                    "evaluation_description": f"{family.title}, {column}",
                    "metric_name": _metric_name(protocol, column),
                    "metric_unit": "percent" if score.unit == "%" else "ratio",
                    "lower_is_better": protocol.higher_is_better == (column in family.opposite),
                    **_range("" if column in family.opposite else protocol.metric, bound),
                },
                "score_details": {
                    "score": score.value,
                    "details": {"selection": score.selection},
                    **({"uncertainty": uncertainty} if uncertainty else {}),
                },
            }
        )
    moment = datetime.fromisoformat(record.created)
    organisation = options.source_name or "not stated"
    found_json: dict[str, Json] = {
        "schema_version": EVERY_EVAL_EVER,
        "evaluation_id": _evaluation_id(record, options),
        "evaluation_timestamp": record.created,
        "retrieved_timestamp": f"{moment.timestamp():.0f}",
        "source_metadata": {
            "source_name": "encoder-bench record",
            "source_type": "evaluation_run",
            "source_organization_name": organisation,
            **({"source_organization_url": options.source_url} if options.source_url else {}),
            "evaluator_relationship": options.relationship,
            "additional_details": {"record_sha256": record.sha256, "commit": record.commit or "not known"},
        },
        "eval_library": {
            "name": "encoder-bench",
            "version": record.versions.get("encoder-bench", record.commit or "not known"),
            "additional_details": dict(record.versions),
        },
        "model_info": {
            "name": name_with_init(card),
            "id": _model_id(card, options),
            "developer": options.developer,
            "additional_details": _strings(
                deployment_type="self_deployed",
                model_availability="unknown",
                architecture=architecture_text(card.architecture),
                weights_sha256=card.weights_sha256,
                source=card.source,
                method=card.method,
                pretrain_data=card.pretrain_data,
                epochs=card.epochs,
                licence=card.licence,
                embed=card.embed,
            ),
        },
        "evaluation_results": results,
    }
    if samples is not None:
        found_json["detailed_evaluation_results"] = {
            "format": "jsonl",
            "file_path": samples.path.as_posix(),
            "hash_algorithm": "sha256",
            "checksum": hashlib.sha256(samples.text.encode()).hexdigest(),
            "total_rows": samples.text.count("\n"),
        }
    if dataset.embedded:
        details = found_json["source_metadata"]["additional_details"]
        details["data"] = "small images composed from this project's own drawings; not comparable with full data sets"
    return found_json


def _source_data(record: Record, options: Export) -> Json:
    protocol, dataset = record.protocol.resolved, record.dataset
    details = _strings(
        protocol=record.protocol.id,
        protocol_sha256=record.protocol.sha256,
        protocol_source=_protocol_source(record),
        fingerprint=dataset.fingerprint,
        train_split=protocol.train_split,
        test_split=protocol.test_split,
        train_items=dataset.train_items,
        test_items=dataset.test_items,
    )
    about = {"dataset_name": dataset.shown_name, "additional_details": details}
    if options.hub_dataset is None:
        return {**about, "source_type": "other"}
    return {**about, "source_type": "hf_dataset", "hf_repo": options.hub_dataset, "samples_number": dataset.test_items}


def _range(metric: str, bound: float) -> dict[str, Json]:
    """Accuracy, average precision and intersection over union end at 0 and 1; other metrics have no stated range."""
    if re.search(r"accuracy|top-\d|mAP|\bAP\b|precision|IoU|intersection", metric, flags=re.IGNORECASE):
        return {"score_type": "continuous", "min_score": 0.0, "max_score": bound}
    return {"score_type": "continuous", "min_score": "-Infinity", "max_score": "Infinity"}


@dataclass(frozen=True)
class Samples:
    """A file with a line per test item, and its path below the output folder."""

    path: Path
    text: str


def samples(stored: StoredRecord, options: Export) -> Samples | None:
    """A line per test item and column of right or wrong answers; None where the record holds none.

    A record keeps whether each item was right, not what was answered, so `output` is empty.

    Raises:
        InputError: the outcomes are not those of the scores.
    """
    with _named(stored):
        record, outcomes = stored.record, stored.outcomes() or {}
        columns = [c for c in record.filled_scores if f"correct/{c}" in outcomes and outcomes["targets"].ndim == 1]
        if not columns or outcomes[f"correct/{columns[0]}"].dtype != np.bool_:
            return None
        lines = []
        for column in columns:
            common = {
                "schema_version": EVERY_EVAL_EVER,
                "evaluation_id": _evaluation_id(record, options),
                "model_id": _model_id(record.encoder, options),
                "evaluation_name": f"{record.protocol.id}: {column}",
                "evaluation_result_id": f"{record.sha256[:16]}/{column}",
                "interaction_type": "single_turn",
                "output": {"raw": []},
                "answer_attribution": [],
            }
            truths, right = outcomes["targets"].tolist(), outcomes[f"correct/{column}"].tolist()
            for name, truth, hit in zip(outcomes["ids"].tolist(), truths, right, strict=True):
                item = {
                    "sample_id": str(name),
                    "input": {"raw": str(name), "reference": [str(truth)]},
                    "evaluation": {"score": float(hit), "is_correct": bool(hit)},
                }
                lines.append(json.dumps({**common, **item}, ensure_ascii=False, sort_keys=True) + "\n")
        return Samples(_place(record, options, "_samples.jsonl"), "".join(lines))


def _every_eval_ever_files(records: Sequence[StoredRecord], options: Export) -> dict[Path, str]:
    files: dict[Path, str] = {}
    for stored in records:
        _refuse_without_date(stored)
        detail = samples(stored, options)
        if detail is not None:
            files[detail.path] = detail.text
        text = json.dumps(every_eval_ever(stored, options, detail), indent=2, ensure_ascii=False, allow_nan=False)
        files[_place(stored.record, options, ".json")] = text + "\n"
    return files


def _refuse_without_date(stored: StoredRecord) -> None:
    created = stored.record.created
    try:
        datetime.fromisoformat(created).timestamp()
    except (ValueError, OverflowError, OSError):
        raise InputError(
            f"{stored.path}: its time of writing, {created[:40]!r}, is not a date; measure it again with --force, or "
            "export the other records without it"
        ) from None


def _place(record: Record, options: Export, ending: str) -> Path:
    """`data/COLLECTION/DEVELOPER/MODEL/UUID…`, the UUID of the form of version 4 and made of the record's hash."""
    name = uuid.UUID(bytes=bytes.fromhex(record.sha256)[:16], version=4)
    folder = Path("data") / COLLECTION / slug(options.developer) / slug(name_with_init(record.encoder))
    return folder / f"{name}{ending}"


def _model_id(card: EncoderCard, options: Export) -> str:
    return f"{slug(options.developer)}/{slug(name_with_init(card))}"


def _evaluation_id(record: Record, options: Export) -> str:
    seconds = datetime.fromisoformat(record.created).timestamp()
    return f"{record.protocol.id}/{_model_id(record.encoder, options)}/{seconds:.0f}-{record.sha256[:8]}"


def _strings(**values: object) -> dict[str, str]:
    return {name: str(value) for name, value in _known(**values).items()}


# ---- YAML


def yaml_text(value: Json, indent: int = 0) -> str:
    """JSON values as YAML in block style; texts are quoted as JSON does, which YAML reads alike."""
    space = " " * indent
    if isinstance(value, Mapping):
        return "".join(f"{space}{_key(name)}:{_below(each, indent + 2)}" for name, each in value.items())
    if isinstance(value, list | tuple):
        lines = []
        for each in value:
            inner = yaml_text(each, indent + 2) if isinstance(each, Mapping) and each else _below(each, indent + 2)
            lines.append(f"{space}- {inner.lstrip()}")
        return "".join(lines)
    return f"{space}{_scalar(value)}\n"


def _below(value: Json, indent: int) -> str:
    if isinstance(value, Mapping | list | tuple):
        if not value:
            return " {}\n" if isinstance(value, Mapping) else " []\n"
        if isinstance(value, list | tuple) and all(isinstance(each, int | float | str) for each in value):
            return f" [{', '.join(_scalar(each) for each in value)}]\n"
        return "\n" + yaml_text(value, indent)
    return f" {_scalar(value)}\n"


def _key(name: str) -> str:
    return name if re.fullmatch(r"[a-zA-Z_][\w-]*", name) else json.dumps(name)


def _scalar(value: Json) -> str:
    text = json.dumps(value, ensure_ascii=False, allow_nan=False)
    # YAML 1.1 reads 1e-07 as a text
    return text.replace("e", ".0e") if isinstance(value, float) and "." not in text else text
