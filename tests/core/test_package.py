"""What others rely on: names, signatures, defaults, and that the maths needs no machinery to import."""

import inspect
import pickle
import subprocess
import sys

import pytest

from spo_verl import core, errors

SIGNATURES = {
    "initial_evidence": "(successes_P, trials_P, *, rho_min=0.875, prior='jeffreys')",
    "value": "(alpha, beta)",
    "effective_sample_size": "(alpha, beta)",
    "degenerate_probability": "(value, group_size=8)",
    "retention": "(divergence_B, *, half_life=0.06, rho_min=0.875, rho_max=0.96)",
    "update_evidence": "(alpha_B, beta_B, reward_sum_B, rho_B, *, count=1)",
    "sampling_weights": "(alpha_P, beta_P, *, gamma=0.0, epsilon=0.05)",
    "value_weights": "(value_P, n_eff_P, *, gamma=0.0, epsilon=0.05)",
    "decay": "(versions, rho)",
    "fold_events": "(alpha_P, beta_P, newest_P, position_B, version_B, reward_B, *, rho)",
    "evidence_at": "(alpha_P, beta_P, newest_P, version, *, rho, floor=0.0)",
    "value_at": "(alpha_P, beta_P, newest_P, version, *, rho, floor=0.0)",
    "draw": "(weight_P, size, rng, *, replace=False, taken=())",
    "quota_counts": "(share_Q, size, rng)",
    "quota_limits": "(share_Q, size)",
    "normalize_advantages": "(advantage_B, token_count_B=None, *, measure='trajectory', eps=1e-08)",
    "divergence": "(log_prob_then_BT, log_prob_now_BT, mask_BT)",
    "WeightIndex": "(weight_P, *, block=64)",
    "average_at_k": "(correct_PG)",
    "pass_at_k": "(responses_P, correct_P, k)",
    "majority_at_k": "(answers_PG, correct_PG, k, *, subsets=1000, seed=0)",
    "bootstrap_interval": "(value_P, stratum_P=None, *, level=0.95, resamples=10000, seed=0)",
    "bootstrap_difference": "(value_P, other_P, stratum_P=None, *, level=0.95, resamples=10000, seed=0)",
    "calibration_features": "(value_B, n_eff_B, age_B, source_B=None, *, sources=0, extra_BF=None, clip=0.01)",
    "fit_calibration": "(feature_BF, reward_B, weight_B=None, *, precision=5.0)",
    "calibrated_value": "(feature_BF, coefficient_F)",
    "read_calibrated": "(value_B, n_eff_B, age_B, coefficient_F, source_B=None, *, extra_BF=None, clip=0.01)",
    "Interval": "(mean, low, high, level, prompts)",
}


def bare_signature(function):
    signature = inspect.signature(function)
    parameters = [p.replace(annotation=inspect.Parameter.empty) for p in signature.parameters.values()]
    return str(signature.replace(parameters=parameters, return_annotation=inspect.Signature.empty))


@pytest.mark.parametrize("name", SIGNATURES)
def test_signatures_are_frozen(name):
    assert bare_signature(getattr(core, name)) == SIGNATURES[name]


def test_everything_public_is_listed_and_documented():
    assert set(core.__all__) == SIGNATURES.keys() | {"SpoArgumentError"}
    for name in core.__all__:
        assert inspect.getdoc(getattr(core, name))


def test_importing_the_maths_pulls_in_no_machinery():
    code = "import sys, spo_verl.core; print(*sorted({name.split('.')[0] for name in sys.modules}))"
    loaded = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    names = set(loaded.stdout.split())
    assert {"numpy", "spo_verl"} <= names
    assert not names & {"ray", "verl", "vllm", "transformers", "pyarrow", "pydantic", "omegaconf", "torch"}


def test_errors_are_values_errors_of_the_one_tree_and_travel():
    error = core.SpoArgumentError("size = -1, but it must be a whole number >= 0")
    assert isinstance(error, ValueError)
    assert isinstance(error, errors.SpoError)
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is core.SpoArgumentError
    assert again.args == error.args
