#!/usr/bin/env bash
# The first run on accelerators: ten steps of the GSM8K recipe with SPO and with GRPO, and SPO's own work at the paper's
# shapes; a report of both. `benchmarks/first_gpu.sh --help` lists the options. PYTHON names another interpreter.
set -euo pipefail
root="$(CDPATH='' cd -- "$(dirname -- "$(readlink -f -- "${BASH_SOURCE[0]}")")/.." && pwd)"
export PYTHONPATH="$root${PYTHONPATH:+:$PYTHONPATH}"
exec "${PYTHON:-python3}" "$root/benchmarks/first_gpu.py" "$@"
