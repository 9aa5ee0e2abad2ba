#!/usr/bin/env bash
# Launch a recipe: recipes/run.sh <experiment>/<name> [hydra overrides]
# The same as python -m verl.trainer.main_ppo with the recipe as its configuration. PYTHON names another interpreter.
set -euo pipefail
here="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
if [[ $# -lt 1 || ! -f "$here/$1.yaml" ]]; then
    echo "usage: recipes/run.sh <experiment>/<name> [hydra overrides]; recipes:" >&2
    (cd "$here" && grep -l '^defaults:' ./*/*.yaml | sed 's|^\./|  |; s|\.yaml$||') >&2
    exit 2
fi
recipe="$1"
shift
# The search path is where recipes of other experiments are found, on which some build.
exec "${PYTHON:-python}" -m verl.trainer.main_ppo --config-dir "$here/${recipe%/*}" --config-name "${recipe##*/}" \
    "hydra.searchpath=['file://$here']" "recipes_dir=$here" "$@"
