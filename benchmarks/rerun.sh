#!/usr/bin/env bash
# Runs again what docs/performance.md and docs/benchmarks.md measure without a launch of verl or an accelerator: about 10 minutes
# on two quiet cores. Needs no data; the figures of the laboratory are worked out from its stored results.
#   benchmarks/rerun.sh | tee rerun.txt
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
python=${PYTHON:-.venv-cpu/bin/python}
[ -x "$python" ] || { echo "error: there is no $python: call ./test.sh --fast first, or set PYTHON=..." >&2; exit 2; }
export PYTHONPATH=$PWD
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
date -u
run() { printf '\n== %s\n' "$*"; SECONDS=0; "$python" "$@"; printf -- '-- %s s\n' "$SECONDS"; }
run benchmarks/plugin_import.py
run benchmarks/tracker_scale.py --prompts 14000 1000000 10000000
run benchmarks/tracker_scale.py --prompts 14000 1000000 10000000 --sources 8 --readout calibrated --dict-limit 0
run benchmarks/tracker_service.py --seconds 60
run benchmarks/tracker_service.py --seconds 60 --pause 4
run benchmarks/record_cost.py
run benchmarks/report_scale.py
run benchmarks/stragglers.py simulate --plot "$folder"
run benchmarks/stragglers.py late
run benchmarks/normalisation.py --steps 2000
run benchmarks/group_waiting.py
run -m benchmarks.laboratory summary --ledger benchmarks/laboratory/results --output "$folder"
run -m benchmarks.laboratory summary --ledger benchmarks/laboratory/results/cpu --output "$folder/cpu"
run -m benchmarks.laboratory readout --visits benchmarks/laboratory/results/cpu/visits_quickstart_b64_seed0.npz
