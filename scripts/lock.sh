#!/usr/bin/env bash
# Compiles requirements/*.txt from pyproject.toml: scripts/lock.sh [--upgrade]. Without it, pins change only where they must.
set -euo pipefail
cd "$(dirname "$0")/.."
upgrade=${1:-}

plain_compile() {
    .venv/bin/uv pip compile pyproject.toml --python-version 3.11 --generate-hashes --quiet \
        --annotation-style line --custom-compile-command "make lock" "$@"
}
compile() { plain_compile --universal ${upgrade:+"$upgrade"} "$@"; }

# Each lock is complete on its own; the constraints keep the versions of all three the same.
all=(--extra report --extra cluster --extra pcam)
compile "${all[@]}" -o requirements/core.txt
compile "${all[@]}" --extra dev -c requirements/core.txt -o requirements/dev.txt
compile "${all[@]}" --extra transfer -c requirements/core.txt -c requirements/dev.txt -o requirements/transfer.txt
# The lower bounds of pyproject.toml, for the job of continuous integration that tries them.
plain_compile "${all[@]}" --extra dev --no-config --python-platform linux --resolution lowest-direct \
    -o requirements/oldest.txt
