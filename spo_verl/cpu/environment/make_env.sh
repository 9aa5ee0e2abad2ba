# Sourced by quickstart.sh and test.sh: makes or updates the Python environment in which verl runs on a CPU.
#
#   spo_make_env PROJECT_ROOT runtime|dev     sets SPO_ENV_PYTHON to the interpreter of a ready environment
#
# Environment variables (all optional):
#   SPO_VENV          where the environment lives            (default: PROJECT_ROOT/.venv-cpu)
#   SPO_PYTHON        a Python 3.11 interpreter              (default: python3.11, or python3 if that is 3.11)
#   SPO_TORCH_WHEELS  address of a package index that has the CPU builds of torch, used for torch alone
#   SPO_PIP_TIMEOUT   seconds that one installation may take (default: 1500)
#
# Every step is bounded in time. A call with nothing to do takes a fraction of a second: a stamp in the environment
# holds the hash of everything that went into it. Two calls at the same time wait for each other.

spo_say() { printf '[environment] %s\n' "$*" >&2; }

spo_fail() {
  printf '\n[environment] ERROR: %s\n' "$1" >&2
  shift
  for line in "$@"; do printf '              %s\n' "$line" >&2; done
  return 1
}

spo_find_python() {
  local candidate
  for candidate in ${SPO_PYTHON:+"$SPO_PYTHON"} python3.11 python3 python; do
    if command -v "$candidate" >/dev/null 2>&1 &&
      "$candidate" -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' >/dev/null 2>&1; then
      command -v "$candidate"
      return 0
    fi
    if [ -n "${SPO_PYTHON:-}" ]; then break; fi
  done
  spo_fail "no Python 3.11 was found (${SPO_PYTHON:-tried python3.11, python3 and python})." \
    "The CPU builds of vLLM and torch are pinned for Python 3.11 on 64-bit Linux. Install it with your system's" \
    "package manager, conda or uv, and name it if it is not on the PATH: SPO_PYTHON=/path/to/python3.11"
}

spo_check_machine() { # VENV
  local parent free
  parent=$(dirname "$1")
  mkdir -p "$parent" || { spo_fail "cannot create $parent." "Name another place with SPO_VENV=..."; return 1; }
  if [ "$(uname -s)-$(uname -m)" != "Linux-x86_64" ]; then
    spo_fail "this is $(uname -s) on $(uname -m); the pinned CPU wheels exist for Linux on x86_64 only."
    return 1
  fi
  free=$(df -Pk "$parent" | awk 'NR == 2 {print $4}')
  if [ "$free" -lt 5000000 ]; then
    spo_fail "$parent has $((free / 1000)) MB free; the environment needs 5,000 MB while it is installed." \
      "Free some space, or put it on another file system: SPO_VENV=/big/disk/spo-venv"
    return 1
  fi
}

spo_pip() { # VENV WHAT ARGUMENTS...   one bounded pip call, its output in VENV/pip.log
  local venv=$1 what=$2 status=0
  shift 2
  spo_say "$what"
  timeout -k 30 "${SPO_PIP_TIMEOUT:-1500}" "$venv/bin/python" -m pip install --disable-pip-version-check \
    --no-input --timeout 60 --retries 3 "$@" >>"$venv/pip.log" 2>&1 || status=$?
  if [ "$status" -ne 0 ]; then
    tail -n 15 "$venv/pip.log" >&2
    if [ "$status" -eq 124 ] || [ "$status" -eq 137 ]; then
      spo_fail "'$what' took longer than ${SPO_PIP_TIMEOUT:-1500} s and was stopped." \
        "Run the command again (what was downloaded is kept), or allow more: SPO_PIP_TIMEOUT=3600"
    else
      spo_fail "'$what' failed; the whole output is in $venv/pip.log" \
        "If a version was not found: the pins need Python 3.11 and a package index that carries them."
    fi
    return 1
  fi
}

spo_install_torch() { # VENV CONSTRAINTS
  local venv=$1 constraints=$2 wanted
  wanted=$(sed -n 's/^torch==/torch==/p' "$constraints")
  if [ "$("$venv/bin/python" -c 'from importlib.metadata import version; print("torch==" + version("torch"))' 2>/dev/null)" = "$wanted" ]; then
    return 0
  fi
  (
    if [ -n "${SPO_TORCH_WHEELS:-}" ]; then export PIP_INDEX_URL="$SPO_TORCH_WHEELS" PIP_EXTRA_INDEX_URL=; fi
    spo_pip "$venv" "installing $wanted (180 MB)" --no-deps "$wanted"
  ) && return 0
  spo_fail "the CPU build of torch ($wanted) could not be installed." \
    "General package indexes carry the CUDA build only. PyTorch publishes the CPU build on an index of its own:" \
    "look up 'Install PyTorch' on the project's site, choose Linux / pip / CPU, and pass the index address of the" \
    "command shown there:  SPO_TORCH_WHEELS=<that address> ./quickstart.sh"
}

spo_inputs_hash() { # PYTHON FILES...
  "$1" - "$@" <<'PY'
import hashlib, sys
digest = hashlib.sha256(sys.version.encode())
for path in sys.argv[2:]:
    with open(path, "rb") as file:
        content = file.read()
    digest.update(f"{len(content)}:".encode() + content)
print(digest.hexdigest())
PY
}

spo_fill_env() { # ROOT VENV KIND HASH
  local root=$1 venv=$2 kind=$3 hash=$4 here="$1/spo_verl/cpu/environment"
  local pins=(-c "$here/constraints.txt" --find-links "$venv/alias-wheels")
  : >"$venv/pip.log" || return 1
  "$venv/bin/python" "$here/alias_wheels.py" "$venv/alias-wheels" || return 1
  spo_install_torch "$venv" "$here/constraints.txt" || return 1
  spo_pip "$venv" "installing verl, vLLM and Ray (600 MB; two to five minutes)" "${pins[@]}" \
    -r "$here/requirements-runtime.txt" || return 1
  spo_pip "$venv" "installing Megatron" --no-deps "${pins[@]}" -r "$here/requirements-megatron.txt" || return 1
  if [ "$kind" = dev ]; then
    spo_pip "$venv" "installing the test tools" "${pins[@]}" -r "$here/requirements-dev.txt" || return 1
  fi
  spo_pip "$venv" "installing spo-verl from this folder" "${pins[@]}" --no-build-isolation -e "$root" || return 1
  printf '%s\n' "$hash" >"$venv/.spo-stamp-$kind"
  # The test environment contains all of the other one.
  if [ "$kind" = dev ]; then printf '%s\n' "$hash" >"$venv/.spo-stamp-runtime"; fi
}

spo_make_env() { # ROOT runtime|dev
  local root=$1 kind=$2 venv python hash started=$SECONDS here="$1/spo_verl/cpu/environment"
  venv=${SPO_VENV:-"$root/.venv-cpu"}
  python=$(spo_find_python) || return 1
  if [ -e "$venv" ] && [ ! -e "$venv/.spo-cpu-env" ]; then
    spo_fail "$venv exists and was not made by this script." \
      "The CPU environment holds stand-ins for torchvision, triton and others that would break an environment" \
      "with a GPU. Name another folder with SPO_VENV=..., or remove this one."
    return 1
  fi
  hash=$(spo_inputs_hash "$python" "$here/constraints.txt" "$here/requirements-runtime.txt" \
    "$here/requirements-megatron.txt" "$here/requirements-dev.txt" "$here/alias_wheels.py" \
    "$root/pyproject.toml") || return 1
  hash="$hash $root"
  SPO_ENV_PYTHON="$venv/bin/python"
  export SPO_ENV_PYTHON
  if [ "$(cat "$venv/.spo-stamp-$kind" 2>/dev/null)" = "$hash" ]; then return 0; fi

  spo_check_machine "$venv" || return 1
  (
    if ! flock -w 1800 9; then
      spo_fail "another call has been making $venv for half an hour (lock: $venv.lock)." "Stop it, then try again."
      exit 1
    fi
    if [ "$(cat "$venv/.spo-stamp-$kind" 2>/dev/null)" = "$hash" ]; then exit 0; fi
    if [ ! -x "$venv/bin/python" ]; then
      spo_say "making $venv with $("$python" --version)"
      # The mark comes first, so that an interrupted attempt is recognised and repeated.
      mkdir -p "$venv" && : >"$venv/.spo-cpu-env" || exit 1
      if ! timeout 300 "$python" -m venv "$venv"; then
        rm -rf "$venv"
        spo_fail "$python could not make a virtual environment." \
          "On Debian and Ubuntu its venv module is a package of its own: python3.11-venv"
        exit 1
      fi
    fi
    spo_fill_env "$root" "$venv" "$kind" "$hash"
  ) 9>"$venv.lock" || return 1
  spo_say "ready after $((SECONDS - started)) s: $venv"
}
