#!/usr/bin/env bash
# Makes the test environment and runs formatting, lint, types and tests. Arguments go to pytest:
#   ./test.sh                      everything but the tests marked slow
#   ./test.sh tests/core -k draw   a part
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
. "$root/spo_verl/cpu/environment/make_env.sh"
spo_make_env "$root" dev
cd "$root"
step() { printf '\n== %s\n' "$1"; shift; "$@"; }
step "ruff check" "$SPO_ENV_PYTHON" -m ruff check .
step "ruff format --check" "$SPO_ENV_PYTHON" -m ruff format --check .
step "mypy" "$SPO_ENV_PYTHON" -m mypy
step "pytest" "$SPO_ENV_PYTHON" -m pytest -m "not slow" "$@"
