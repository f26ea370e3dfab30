#!/usr/bin/env bash
# Installs one locked set into .venv: scripts/setup.sh core|dev|transfer. `make` calls it when a lock has changed.
set -euo pipefail
cd "$(dirname "$0")/.."
set_name=$1

fail() {
    echo "setup: $1" >&2
    exit 2
}

find_python() { # 3.11 first: it is the version that the locks were tried with
    local candidate
    for candidate in ${PYTHON:-python3.11 python3}; do
        "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo "$candidate" && return
    done
    fail "Python 3.11 or newer is needed and ${PYTHON:-python3} is $("${PYTHON:-python3}" -V 2>/dev/null ||
        echo missing); install it, or name one with PYTHON=/path/to/python3.11."
}

need_disk() { # measured with du: all locks together; more than half of it are the CUDA libraries of Linux
    compgen -G '.venv/lib/python3*/site-packages/torch/version.py' >/dev/null && return
    local kib=2600000 folder=. free
    case $(uname -sm) in "Linux x86_64" | "Linux aarch64") kib=6840000 ;; esac
    if [ -d .venv ]; then # what an interrupted set-up has installed counts
        folder=.venv/
        kib=$((kib - $(du -sk "$folder" | cut -f1)))
    fi
    free=$(df -Pk "$folder" | awk 'NR == 2 { print $4 }')
    [ "$free" -ge "$kib" ] || fail "$PWD/.venv needs $(gigabytes "$kib") of disk, and $(gigabytes "$free") are free there; \
make space, or move this folder to a larger disk."
}

gigabytes() { awk -v kib="$1" 'BEGIN { printf "%.1f GB", kib * 1024 / 1e9 }'; }

if .venv/bin/python -m pip --version >/dev/null 2>&1; then
    need_disk
else
    python=$(find_python)
    "$python" -c 'import ensurepip, venv' 2>/dev/null ||
        fail "Python's venv module is missing; on Debian and Ubuntu: apt-get install python3-venv."
    "$python" -c 'import sys; sys.exit(sys.version_info >= (3, 12))' ||
        echo "setup: notice: $("$python" -V) is newer than 3.11, the version this project is tested with."
    need_disk
    "$python" -m venv .venv
fi

pip() { .venv/bin/python -m pip --disable-pip-version-check "$@"; }

pinned() { # the lines of the lock for the packages named
    local name
    for name; do sed -n "/^$name==/,/# via/p" "requirements/$set_name.txt"; done
}

echo "setup: installing requirements/$set_name.txt into .venv"
# A few packages are only published as sources. They are built with the locked setuptools: with build isolation pip would
# fetch whatever setuptools is newest, past the hashes of the lock.
pinned setuptools >.venv/setuptools.txt
pip install --no-deps --require-hashes --only-binary=:all: -r .venv/setuptools.txt
if [ "$set_name" = transfer ]; then
    # They are built where torch cannot be seen: mmcv would compile operators that nothing here uses, with a C++
    # standard that is too old for this torch.
    rm -rf .venv/build
    .venv/bin/python -m venv --without-pip .venv/build
    mkdir -p .venv/build/wheels
    pinned setuptools packaging >.venv/build/tools.txt
    pinned antlr4-python3-runtime fvcore onedl-mmcv onedl-mmsegmentation >.venv/build/sources.txt
    pip --python .venv/build/bin/python install --no-deps --require-hashes --only-binary=:all: -r .venv/build/tools.txt
    pip --python .venv/build/bin/python wheel --no-deps --require-hashes --no-build-isolation \
        --wheel-dir .venv/build/wheels -r .venv/build/sources.txt
    pip install --no-deps --no-index --only-binary=:all: .venv/build/wheels/*.whl
    rm -rf .venv/build
fi
# Each lock is complete, so pip has nothing to resolve: --no-deps keeps out what a lock leaves out (opencv-python).
pip install --no-deps --require-hashes --only-binary=:all: -r "requirements/$set_name.txt"

case $set_name in
core)
    pip install --no-deps --no-build-isolation --editable .
    ;;
transfer)
    site=$(.venv/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
    pip install --no-deps --require-hashes --upgrade --only-binary=:all: --python-version 3.10 --target "$site" \
        -r requirements/detectron2.txt
    ;;
esac
