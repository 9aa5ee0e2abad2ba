#!/usr/bin/env bash
# Trains a small reasoning model with SPO on a CPU, through verl's stock command, from a bare checkout.
#   ./quickstart.sh            install (first time), build task and model, train, compare accuracy before and after
#   ./quickstart.sh --help     what can be chosen
# Needs Linux on x86_64, Python 3.11, 5 GB of disk and 8 GB of memory. Results go to runs/quickstart.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
. "$root/spo_verl/cpu/environment/make_env.sh"
spo_make_env "$root" runtime
export SPO_RUNS="${SPO_RUNS:-$root/runs}"
# -P: a file of the folder that this is called from must not stand in for a module of that name.
exec "$SPO_ENV_PYTHON" -P -m spo_verl.quickstart "$@"
