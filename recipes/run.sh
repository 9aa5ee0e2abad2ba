#!/usr/bin/env bash
# Launch a recipe: recipes/run.sh <experiment>/<name> [hydra overrides]
# The same as python -m verl.trainer.main_ppo with the recipe as its configuration. PYTHON names another interpreter.
set -euo pipefail
# The folder of this file; where a link to it lies elsewhere, the folder that the link leads to.
here="$(CDPATH='' cd -- "$(dirname -- "${BASH_SOURCE[0]}")" && pwd)"
if [[ $# -lt 1 || ! -f "$here/$1.yaml" ]]; then
    here="$(dirname -- "$(readlink -f -- "${BASH_SOURCE[0]}")")"
fi
if [[ $# -lt 1 || ! -f "$here/$1.yaml" ]]; then
    echo "usage: recipes/run.sh <experiment>/<name> [hydra overrides]; recipes:" >&2
    (CDPATH='' cd -- "$here" && grep -l '^defaults:' ./*/*.yaml | sed 's|^\./|  |; s|\.yaml$||') >&2
    exit 2
fi
exec "${PYTHON:-python}" -m spo_verl.launching.run_recipe "$here" "$@"
