#!/usr/bin/env bash
# Compiles requirements/*.txt from pyproject.toml: scripts/lock.sh [--upgrade]. Without it, pins change only where they must.
set -euo pipefail
cd "$(dirname "$0")/.."
upgrade=${1:-}

compile() {
    .venv/bin/uv pip compile pyproject.toml --universal --python-version 3.11 --generate-hashes --quiet \
        --annotation-style line --custom-compile-command "make lock" ${upgrade:+"$upgrade"} "$@"
}

# Each lock is complete on its own; the constraints keep the versions of all three the same.
compile -o requirements/core.txt
compile --extra dev -c requirements/core.txt -o requirements/dev.txt
compile --extra transfer -c requirements/core.txt -c requirements/dev.txt -o requirements/transfer.txt
