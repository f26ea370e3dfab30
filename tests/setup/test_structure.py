"""How much of the project one run goes through, that benchmarks do not import each other, and names."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch

from benchmarks.registry import TASK_NAMES, load_task
from pretrain.resnet import ResNet
from results.schema import Architecture

ROOT = Path(__file__).parents[2]
MOST_FILES = 26
COUNT = """
    import sys, threading
    from pathlib import Path

    import torch, torchvision  # before the profile, which would follow every call of their import

    root, files = sys.argv.pop(1) + "/", set()

    def called(frame, event, argument):
        code = frame.f_code
        if event == "call" and code.co_flags & 1 and code.co_filename.startswith(root):  # a function, not a module body
            files.add(code.co_filename.removeprefix(root))

    sys.setprofile(called)
    threading.setprofile(called)
    from benchmarks.__main__ import main

    code = main(sys.argv[1:])
    sys.setprofile(None)
    print("\\n".join(sorted(file for file in files if not file.startswith(".venv"))))
    sys.exit(code)
"""


@pytest.mark.slow
def test_a_knn_run_goes_through_few_files(small_data: Path, tmp_path: Path) -> None:
    net = ResNet(Architecture(name="resnet18", width=8))
    keys = {f"module.encoder_q.{name}": tensor for name, tensor in net.state_dict().items()}
    torch.save({"epoch": 200, "arch": "resnet18", "state_dict": keys}, tmp_path / "moco.pth.tar")
    command = ["knn", "--encoder", str(tmp_path / "moco.pth.tar"), "--data", str(small_data), "--set", "k=1"]
    where = ["--out", str(tmp_path / "records"), "--features", str(tmp_path / "features"), "--device", "cpu"]
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(COUNT), str(ROOT), *command, *where],
        cwd=ROOT, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    files = [line for line in done.stdout.splitlines() if line.endswith(".py")]
    assert "benchmarks/knn.py" in files
    assert len(files) <= MOST_FILES, "\n".join(files)


@pytest.mark.slow
def test_no_benchmark_imports_another() -> None:
    modules = {load_task(name).__module__ for name in TASK_NAMES}
    for module in modules:
        tree = ast.parse((ROOT / f"{module.replace('.', '/')}.py").read_text(encoding="utf-8"))
        imported = {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.module}
        # The tasks of one engine share its folder, and ViTDet's is detection's with another model.
        engine = {"benchmarks.detection", "benchmarks.segmentation"} & {module.rpartition(".")[0]}
        others = {other for other in modules - {module} if other.rpartition(".")[0] not in engine}
        assert not imported & others, module


def sources(*folders: str) -> dict[str, str]:
    paths = subprocess.run(["git", "ls-files", *folders], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    return {path: (ROOT / path).read_text() for path in paths.split() if path.endswith(".py")}


def test_no_two_public_classes_share_a_name() -> None:
    places: dict[str, list[str]] = {}
    for path, text in sources("pretrain", "benchmarks", "results", "scripts").items():
        for name in re.findall(r"^class ([A-Za-z]\w*)", text, re.MULTILINE):
            places.setdefault(name, []).append(path)
    assert {name: found for name, found in places.items() if len(found) > 1} == {}


def test_no_test_patches_a_private_constant() -> None:
    patch = re.compile(r"""setattr\(\s*(?:[^"'(),]+,\s*)?["'](?:[\w.]+\.)?_[A-Z][A-Z0-9_]+["']""")
    assert [path for path, text in sources("tests").items() if patch.search(text)] == []


TABLES = {  # modules that list benchmarks, data sets, commands or measurements, each in a file of its own
    "benchmarks.registry", "benchmarks.__main__", "benchmarks.datasets.registry", "results.commands",
    "scripts.speed.__main__",
}  # fmt: skip
MOST_PARTS = 14


def imported_by() -> dict[str, set[str]]:
    """Module -> the modules that import it, at their head or at call time."""
    files = sources("pretrain", "benchmarks", "results", "scripts")
    modules = {path[:-3].replace("/", ".").removesuffix(".__init__"): path for path in files}
    importers: dict[str, set[str]] = {module: set() for module in modules}
    for module, path in modules.items():
        package = module if path.endswith("__init__.py") else module.rpartition(".")[0]
        for node in ast.walk(ast.parse(files[path])):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import | ast.ImportFrom) else []
            if isinstance(node, ast.ImportFrom):
                above = ".".join(package.split(".")[: 1 - node.level or None]) if node.level else ""
                base = ".".join(filter(None, (above, node.module)))
                names = [base, *(f"{base}.{name}" for name in names)]
            for name in names:
                if name in importers and name != module:
                    importers[name].add(module)
    return {m: found for m, found in importers.items() if not modules[m].endswith(("__init__.py", "__main__.py"))}


@pytest.mark.slow
def test_few_modules_are_parts_of_a_single_other_one() -> None:
    importers = imported_by()
    assert importers["benchmarks.knn"] == {"benchmarks.registry"}
    assert importers["scripts.speed.svm"] == {"scripts.speed.__main__"}
    parts = [module for module, found in importers.items() if len(found) == 1 and not found <= TABLES]
    assert len(parts) <= MOST_PARTS, "\n".join(parts)
