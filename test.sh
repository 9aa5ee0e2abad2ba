#!/usr/bin/env bash
# Makes the test environment and runs formatting, lint, types, the documentation site and tests:
#   ./test.sh                      everything but the tests marked slow
#   ./test.sh --fast               without launches of verl and without the tests marked long
#   ./test.sh tests/core -k draw   arguments for pytest: a part
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
. "$root/spo_verl/cpu/environment/make_env.sh"
spo_make_env "$root" dev
cd "$root"
step() { printf '\n== %s\n' "$1"; shift; "$@"; }
parallel() { step "pytest -m '$1'" "$SPO_ENV_PYTHON" -m pytest -n auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder -m "$1"; }
step "ruff check" "$SPO_ENV_PYTHON" -m ruff check .
step "ruff format --check" "$SPO_ENV_PYTHON" -m ruff format --check .
step "mypy" "$SPO_ENV_PYTHON" -m mypy
export NO_MKDOCS_2_WARNING=1  # an advertisement in the log
step "mkdocs build --strict" "$SPO_ENV_PYTHON" -m mkdocs build --strict
case "${1:-}" in
  --fast) parallel "not slow and not system and not long" ;;
  "")
    status=0
    parallel "not slow and not system" || status=$?
    # Launches take both cores by themselves, two at a time.
    step "pytest -m 'system and not slow'" "$SPO_ENV_PYTHON" -m pytest -m "system and not slow" || status=$?
    exit "$status"
    ;;
  *) step "pytest" "$SPO_ENV_PYTHON" -m pytest -m "not slow" "$@" ;;
esac
