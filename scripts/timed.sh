#!/usr/bin/env bash
# Runs one part of the demo and notes its time: scripts/timed.sh TIMES PART COMMAND…
# TIMES is a file of "seconds<TAB>part" lines; `scripts/timed.sh TIMES` alone prints each part's share.
set -euo pipefail
times=$1
shift
if [ $# -eq 0 ]; then
    awk -F '\t' '{ s[NR] = $1; part[NR] = $2; all += $1 }
        END { for (i = 1; i <= NR; i++) printf "%6d s %3d %%  %s\n", s[i], all ? 100 * s[i] / all : 0, part[i]
              printf "%6d s        in all\n", all }' "$times"
    exit
fi
part=$1
shift
echo "--- $part: $*"
started=$SECONDS
"$@"
took=$((SECONDS - started))
mkdir -p "$(dirname "$times")"
printf '%s\t%s\n' "$took" "$part" >>"$times"
echo "--- $part took $took s"
