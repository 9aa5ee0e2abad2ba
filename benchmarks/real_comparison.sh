#!/usr/bin/env bash
# SPO and what it is compared with in the real trainer, at equal trajectories: 8,192 for each run, offline ones counted.
# 12 to 25 minutes per seed on two cores. Finished runs are shown again; another call continues.
#   SEEDS="0 1" benchmarks/real_comparison.sh
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
for seed in ${SEEDS:-0 1 2 3 4}; do
  run=(./quickstart.sh --seed "$seed")
  "${run[@]}" # 4,096 offline, then 16 steps of 256
  "${run[@]}" --steps 32 --estimator grpo
  "${run[@]}" --steps 32 --no-offline-values
  "${run[@]}" --steps 32 --no-offline-values spo.value.readout=calibrated
  "${run[@]}" --steps 32 --no-offline-values spo.advantage.baseline=none spo.sampling.mode=uniform
done
./quickstart.sh --compare
