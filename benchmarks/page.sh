#!/bin/sh
# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
# The tables of docs/evidence/performance.md made again, one after the other: a quarter of an hour on a machine that does nothing else.
#
#   benchmarks/page.sh                          # all but the long live run, and the rivals
#   AGAINST=COMMIT MINUTES=10 benchmarks/page.sh       # ratios to a commit's frame times; so long at each rate of the live run
#   ONLY="frame live" benchmarks/page.sh        # some of: frame presets network large_map live
set -eu
cd "$(dirname "$0")/.."
: "${PYTHON:=.venv/bin/python}" "${ONLY:=frame presets network large_map live}" "${MINUTES:=0.75}"

run() {
    name=$1
    shift
    "$PYTHON" "benchmarks/$name.py" --docs docs/evidence/performance.md "$@"
}

for part in $ONLY; do
    case $part in
        frame) run frame ${AGAINST:+--against "$AGAINST"} ;;
        presets) run frame --section presets --sizes 640x480 --preset fast balanced accurate ;;
        live) run live --rates 30 15 --minutes "$MINUTES" ;;
        *) run "$part" ;;
    esac
done
