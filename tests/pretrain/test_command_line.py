"""What cannot be read from the command line is refused in one sentence, and by name."""

from __future__ import annotations

import runpy
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from pretrain.__main__ import main
from pretrain.recipe import Recipe

SCRIPTS = Path(__file__).parents[2] / "scripts"


def refusal(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    assert main(arguments) == 2
    error = capsys.readouterr().err
    first, *more = error.splitlines()
    assert first.startswith("pretrain: ")
    assert all(line.startswith("  ") for line in more)  # accepted forms and where to find them
    return error


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        (["--temprature", "0.1"], ["no flag --temprature", "--temperature"]),
        (["--temprature=0.1"], ["no flag --temprature", "--temperature"]),
        (["--data", "x", "--hue", "0.3"], ["no flag --hue", "--augmentation.hue"]),
        (["--data", "x", "--augmentation.blur-q", "1"], ["--augmentation.blur-q", "--augmentation.blur-p"]),
        (["--data", "x", "--epochs", "many"], ["--epochs", "many"]),
        (["--data", "x", "--epochs"], ["--epochs"]),
        (["--data", "x", "--mean", "1", "2"], ["--mean", "3 values"]),
        (["--data", "x", "--mechanism", "memory"], ["--mechanism", "memory-bank"]),
        (["--data", "x", "--symmetric", "true"], ["--symmetric takes no value", "--no-symmetric"]),
        (["--data", "x", "--architecture.max-pool=false"], ["--architecture.no-max-pool"]),
        (["--data", "x", "stray"], ["stray"]),
        (["--data", "x", "--lr", "-1"], ["lr", "greater than or equal to 0"]),
        (["--data", "x", "--batch-size", "7"], ["queue_size 65536 is not a multiple of batch_size 7"]),
        (["--data", "x", "--augmentation.stored-size", "32"], ["pretrain: stored_size is for engine = 'tensor'"]),
        (["--recipe"], ["--recipe"]),
        ([], ["--data"]),
    ],
    ids=lambda value: " ".join(value),
)
def test_a_flag_that_cannot_be_read_is_named(
    flags: list[str], named: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    error = refusal(flags, capsys)
    assert all(text in error for text in named), error


def test_a_field_that_no_recipe_has_is_named_with_those_near_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "mine.toml"
    for text, named in (
        ("moment = 0.9", "no field moment; did you mean 'sgd_momentum' or 'key_momentum'?"),
        (
            "[augmentation]\nblurr_p = 1.0",
            "no field augmentation.blurr_p; did you mean 'augmentation.blur_p' or",
        ),
        ("lr = 'fast'", "lr: "),
        ("lr = fast", f"{path} is not a TOML file"),
        (f"parent = '{path}'", f"{path} is its own parent"),
        ("parent = 3", "parent must be the name or path of a recipe, got 3"),
    ):
        path.write_text(text, encoding="utf-8")
        assert named in refusal(["--recipe", str(path), "--data", "x"], capsys)


def fields(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Dotted flag to default value, of nested fields too."""
    found: dict[str, Any] = {}
    for name, value in values.items():
        flag = prefix + name.replace("_", "-")
        found |= fields(value, f"{flag}.") if isinstance(value, dict) else {flag: value}
    return found


@pytest.mark.slow
@pytest.mark.parametrize("every", [5, pytest.param(1, marks=pytest.mark.nightly)])
def test_every_field_of_a_recipe_is_refused_by_name(every: int, capsys: pytest.CaptureFixture[str]) -> None:
    """A value of the wrong type for whatever is no text, and a misspelled flag for some of them."""
    defaults = fields(Recipe().model_dump())
    assert len(defaults) > 50
    for number, flag in list(enumerate(defaults))[::every]:
        if number % 20 == 0:
            misspelled = refusal(["--data", "x", f"--{flag}x", "1"], capsys)
            assert f"no flag --{flag}x; did you mean " in misspelled
            assert f"--{flag}" in misspelled.partition("did you mean")[2], misspelled
        if flag in ("name", "citation", "architecture.name"):  # any text; the last is refused with the data at hand
            continue
        wrong = refusal(["--data", "x", f"--{flag}", "wrong"], capsys)
        assert f"--{flag}" in wrong, wrong


@pytest.mark.parametrize(
    ("words", "fault"),
    [
        (["bench-loader", "--recipee", "x"], "bench-loader: no flag --recipee"),
        (["cost-table", "--recipee", "x"], "cost-table: no flag --recipee"),
        (["index-shards", "--recipee", "x"], "index-shards: no flag --recipee"),
        (["prepare-voc12aug", "--recipee", "x"], "prepare-voc12aug: no flag --recipee"),
        (["bench", "--recipe", "x"], "prepare: name one of the commands index-shards, prepare-voc12aug, "),
        ([], "prepare: name one of the commands"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) and value else "",
)
def test_the_commands_before_a_run_refuse_in_one_sentence_too(
    words: list[str], fault: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["prepare.py", *words])
    with pytest.raises(SystemExit) as stop:
        runpy.run_path(str(SCRIPTS / "prepare.py"), run_name="__main__")
    assert stop.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith(fault)
    assert len(error.splitlines()) == (2 if "no flag" in fault else 1)


def test_a_device_that_is_not_there_is_named(images: Path, capsys: pytest.CaptureFixture[str]) -> None:
    small = ["--batch-size", "16", "--queue-size", "32"]
    assert "unknown device 'abacus'" in refusal(["--data", str(images), *small, "--device", "abacus"], capsys)


def test_help_shows_the_fields_of_the_recipe_too(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["--help"])
    assert not stop.value.code
    assert "--temperature" in capsys.readouterr().out


@pytest.mark.slow
def test_help_and_refusals_do_not_wait_for_torch(tmp_path: Path) -> None:
    code = (
        "import sys; from pretrain.__main__ import main\n"
        "try:\n    code = main(sys.argv[1:])\nexcept SystemExit as stop:\n    code = stop.code or 0\n"
        "assert 'torch' not in sys.modules; sys.exit(code)"
    )
    for flags, expected in (
        (["--help"], 0),
        (["--recipe", "mocov3", "--data", "x"], 2),
        (["--data", "x", "--temprature", "1"], 2),
        (["--data", str(tmp_path / "nowhere")], 2),
    ):
        done = subprocess.run([sys.executable, "-c", code, *flags], capture_output=True, text=True)
        assert done.returncode == expected, done.stderr
        assert expected == 0 or done.stderr.startswith("pretrain: ")
