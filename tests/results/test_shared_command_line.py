"""Refusals of the shared command line name the fault, then what is close to it; help goes to stdout."""

from __future__ import annotations

import io
import os
import subprocess
import sys
import warnings
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Annotated, Literal

import pytest
import tyro
from matplotlib.figure import Figure
from pydantic import BaseModel, model_validator

from results.command_line import first_sentence, ignore_missing_glyphs, parse, split_command
from results.errors import InputError, sentence_about

GROUPS = {"Tables": {"tables": "Write tables.", "diff": "Compare two."}, "Other": {"lint": "Check a page."}}


@dataclass(frozen=True)
class Crop:
    size: int = 224


@dataclass(frozen=True)
class Options:
    """Some options.

    Attributes:
        name: whose name it is.
    """

    name: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="NAME")]
    records: str = "here"
    format: Literal["csv", "markdown"] = "csv"
    check: bool = False
    crop: Crop = field(default_factory=Crop)


class Pair(BaseModel):
    low: int = 0
    high: int = 1

    @model_validator(mode="after")
    def _ordered(self) -> Pair:
        if self.low > self.high:
            raise ValueError(f"low {self.low} is above high {self.high}")
        return self


def test_values_are_read() -> None:
    assert parse(Options, ["me", "--check", "--crop.size", "9"], "demo") == Options("me", check=True, crop=Crop(9))
    assert parse(Pair, ["--low", "3"], "demo", default=Pair(high=5)) == Pair(low=3, high=5)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["me", "--recrods", "x"], "no flag --recrods; did you mean --records?"),
        (["me", "--size", "3"], "no flag --size; did you mean --crop.size?"),
        (["me", "--zzz"], "no flag --zzz\n"),
        (["me", "--check", "yes"], "--check takes no value, got 'yes'; its opposite is --no-check"),
        (["me", "--format", "pdf"], "invalid choice 'pdf' for argument '--format'"),
        (["me", "--records"], "missing value for argument '--records'"),
        (["me", "you"], "unrecognized options: you"),
        ([], "missing: NAME whose name it is."),
    ],
)
def test_a_refusal_is_one_sentence_and_names_the_fault(arguments: list[str], said: str) -> None:
    with pytest.raises(InputError) as refused:
        parse(Options, arguments, "demo")
    assert str(refused.value).startswith(said)
    assert "│" not in str(refused.value)
    assert "its opposite" in said or "demo --help" in str(refused.value).splitlines()[1]


@pytest.mark.slow
def test_a_fault_that_the_oldest_tyro_stumbles_over(monkeypatch: pytest.MonkeyPatch) -> None:
    """As tyro 1.0.0 does: it takes the first of the error's args, of which pydantic's has none."""

    def cli(*_: object, **__: object) -> object:
        try:
            return Pair(low=2, high=1)
        except ValueError as error:
            return error.args[0]

    monkeypatch.setattr("tyro.cli", cli)
    with pytest.raises(InputError, match="low 2 is above high 1"):
        parse(Pair, [], "demo")


def test_the_fault_is_read_from_a_box_without_utf_8_too() -> None:
    code = "from tests.results.test_shared_command_line import Options, parse\nparse(Options, [], 'demo')"
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=Path(__file__).parents[2],
        env={**os.environ, "PYTHONIOENCODING": "ascii"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert "InputError: missing: NAME whose name it is." in done.stderr


def test_values_that_do_not_go_together_are_refused_with_the_models_reason() -> None:
    with pytest.raises(InputError, match="low 3 is above high 1"):
        parse(Pair, ["--low", "3"], "demo")


def test_a_command_is_split_off_and_a_misspelt_one_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert split_command(GROUPS, ["diff", "a", "--help"], "demo", "About.") == ("diff", ["a", "--help"])
    for arguments, said in ((["dif"], "no command 'dif'; did you mean 'diff'?"), ([], "name a command")):
        with pytest.raises(InputError) as refused:
            split_command(GROUPS, arguments, "demo", "About.")
        assert str(refused.value).splitlines()[0] == said
        assert "commands: tables, diff, lint" in str(refused.value)
    with pytest.raises(SystemExit) as stop:
        split_command(GROUPS, ["--help"], "demo", "About.")
    assert stop.value.code == 0
    shown = capsys.readouterr().out
    assert all(f"{name}  " in shown and line in shown for group in GROUPS.values() for name, line in group.items())
    assert first_sentence(Options) == "Some options."


@pytest.mark.parametrize(
    "command", [["results", "verify", "results/records"], ["benchmarks", "protocols"], ["benchmarks", "--help"]]
)
def test_a_reader_of_the_output_that_has_seen_enough_is_no_error(command: list[str]) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "wb") as output:
        done = subprocess.run(
            [sys.executable, "-m", *command], cwd=Path(__file__).parents[2], stdout=output, stderr=subprocess.PIPE
        )
    assert (done.returncode, done.stderr) == (141, b"")


@pytest.mark.parametrize(
    ("module", "inside", "arguments"),
    [
        ("benchmarks.__main__", "_bench_command", ["knn"]),
        ("results.__main__", "split_command", ["tables"]),
        ("pretrain.__main__", "load_recipe", []),
    ],
)
def test_ctrl_c_ends_a_command_with_one_line(
    module: str, inside: str, arguments: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    program = import_module(module)
    monkeypatch.setattr(program, inside, interrupted)
    assert program.main(arguments) == 130
    assert capsys.readouterr().err.endswith(": interrupted; what it stored is kept, and the same command uses it\n")


def test_a_message_names_its_file_once() -> None:
    assert sentence_about("a.pth", "a.pth is cut short; copy it again") == "a.pth is cut short; copy it again"
    assert sentence_about("a.pth", "it is cut short") == "a.pth: it is cut short"
    assert sentence_about("timm:net:a.pth", "a.pth is cut short") == "a.pth is cut short"
    assert sentence_about("a", "a.pth is cut short") == "a: a.pth is cut short"


def test_a_name_in_letters_that_the_font_lacks_is_drawn_without_a_warning() -> None:
    figure = Figure()
    figure.suptitle("\u6c49\u5b57")
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        ignore_missing_glyphs()
        figure.savefig(io.BytesIO())
    assert not said


@dataclass(frozen=True)
class Optional:
    """Options without defaults."""

    workers: int | None = None
    """processes that load images; 2 on a CPU …, and on a GPU each rank's whole share of all the cores"""
    facts: tuple[str, ...] = ()
    """facts"""
    seed: int = 3
    """seed of everything"""


@pytest.mark.parametrize("width", range(60, 100, 3))  # so that a default is broken over two lines in some
def test_help_says_nothing_of_a_default_that_is_none(
    width: int, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    with pytest.raises(SystemExit) as stop:
        parse(Optional, ["--help"], "demo")
    assert stop.value.code == 0
    shown = capsys.readouterr().out
    assert "None" not in shown
    assert shown.count("(default:") == 1
    assert " ".join(shown.split()).endswith("--seed INT seed of everything (default: 3)")
    assert "\n\n\n" not in shown


def test_help_is_written_to_a_terminal_of_ascii(monkeypatch: pytest.MonkeyPatch) -> None:
    written = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, encoding="ascii", write_through=True))
    with pytest.raises(SystemExit):
        parse(Optional, ["--help"], "demo")
    assert b"on a CPU ?, and" in b" ".join(written.getvalue().split())
