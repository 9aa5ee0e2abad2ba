"""The mistakes: which text of which file of ``spo_verl/core`` becomes what.

``old`` must occur exactly once in the file, so that a mutation that no longer applies is an error and not a
silent pass. Only mistakes that change results belong here; one that no test could notice is not a mistake.
"""

from __future__ import annotations

from dataclasses import dataclass

TESTS_OF_FILE = {
    "_checks.py": ("test_evidence.py",),
    "calibration.py": ("test_calibration.py",),
    "evidence.py": ("test_evidence.py",),
    "event_time.py": ("test_event_time.py",),
    "forgetting.py": ("test_forgetting.py",),
    "sampling.py": (
        "test_quota.py",
        "test_parity.py",
        "test_weight_index.py",
        "test_sampling.py",
        "test_taken.py",
        "test_draw_statistics.py",
    ),
    "advantage.py": ("test_advantage.py",),
    "divergence.py": ("test_divergence.py",),
    "evaluation.py": ("test_evaluation.py",),
}
"""The test files of ``tests/core`` that must catch a mistake in a file, the quick ones first."""


@dataclass(frozen=True)
class Mutation:
    """One mistake: in ``file``, the single occurrence of ``old`` becomes ``new``."""

    name: str
    file: str
    old: str
    new: str


_UPDATE = "    return rho_B * alpha_B + reward_B, rho_B * beta_B + (count_B - reward_B)"
_INITIAL = "    return np.where(tried_P, alpha_P, UNTRIED_EVIDENCE), np.where(tried_P, beta_P, UNTRIED_EVIDENCE)"
_CLIP = "np.clip(np.exp2(-divergence / half_life), rho_min, rho_max)"
_CLOCKS = "np.log(rng.standard_exponential(racing.size)) - np.log(weight_P[racing])"
_RESUM = "        self._block_sums[touched] = blocks.sum(axis=1)"
_RESQUARE = "        self._block_largest[touched], self._block_squares[touched] = _largest_and_squares(blocks)"
_TOUCHED = "        touched = np.unique(slot_B // self._blocks.shape[1])\n        blocks = self._blocks[touched]"
_STORE = "        self._blocks.reshape(-1)[slot_B] = weight_B"
_ELEMENT = "element_C = (cumulative_CJ / cumulative_CJ[:, -1:] <= uniform[:, 1:]).sum(axis=1)"
_SHARE = "        return np.asarray(weight_P[slot_B] / total)"
_TOKENS = '    return count_B if measure == "token" else (count_B > 0).astype(np.float64)'
_PROMOTE = "torch.promote_types(torch.promote_types(then_BT.dtype, now_BT.dtype), torch.float32)"

EVIDENCE = [
    ("the Jeffreys half is dropped", 'pseudo = 0.5 if prior == "jeffreys" else 0.0', "pseudo = 0.0"),
    ("the Jeffreys half is always there", 'pseudo = 0.5 if prior == "jeffreys" else 0.0', "pseudo = 0.5"),
    ("one Jeffreys half too few in n", "2.0 * pseudo", "pseudo"),
    ("initial mass from rho, not 1 - rho", "mass = 1.0 / (1.0 - rho_min)", "mass = 1.0 / rho_min"),
    ("initial mass is the trials", "mass = 1.0 / (1.0 - rho_min)", "mass = trial_P"),
    ("initial successes and failures swapped", _INITIAL, _INITIAL.replace("tried_P, alpha_P", "tried_P, beta_P")),
    ("untried slots start at Beta(1, 1)", "UNTRIED_EVIDENCE = 0.5", "UNTRIED_EVIDENCE = 1.0"),
    ("untried slots get the full mass", _INITIAL, "    return alpha_P, beta_P"),
    ("value of the failures", "np.divide(alpha, mass,", "np.divide(beta, mass,"),
    ("value with one outcome too many", "    mass = alpha + beta\n", "    mass = alpha + beta + 1.0\n"),
    ("value 0 without evidence", "np.full_like(mass, 0.5)", "np.zeros_like(mass)"),
    ("N_eff with one outcome too many", "return alpha + beta", "return alpha + beta + 1.0"),
    ("rho and 1 - rho swapped", _UPDATE, _UPDATE.replace("rho_B *", "(1.0 - rho_B) *")),
    ("failures are never forgotten", _UPDATE, _UPDATE.replace("rho_B * beta_B", "beta_B")),
    ("nothing is ever forgotten", _UPDATE, _UPDATE.replace("rho_B * ", "")),
    (
        "new outcomes are discounted too",
        _UPDATE,
        "    return rho_B * (alpha_B + reward_B), rho_B * (beta_B + count_B - reward_B)",
    ),
    (
        "successes and failures swapped",
        _UPDATE,
        "    return rho_B * alpha_B + count_B - reward_B, rho_B * beta_B + reward_B",
    ),
    ("failures get the wrong sign", _UPDATE, _UPDATE.replace("(count_B - reward_B)", "(reward_B - count_B)")),
    ("the count is taken to be one", _UPDATE, _UPDATE.replace("count_B", "1.0")),
    ("discounted once per outcome", _UPDATE, _UPDATE.replace("rho_B *", "rho_B**count_B *")),
    ("discounted twice", _UPDATE, _UPDATE.replace("rho_B *", "rho_B**2 *")),
    (
        "evidence is changed in place",
        _UPDATE,
        "    alpha_B *= rho_B\n    alpha_B += reward_B\n    return alpha_B, rho_B * beta_B + (count_B - reward_B)",
    ),
    ("rewards above their range are let in", "(reward_B >= 0) & (reward_B <= count_B)", "reward_B >= 0"),
    ("negative rewards are let in", "(reward_B >= 0) & (reward_B <= count_B)", "reward_B <= count_B"),
    ("retention above 1 is let in", "(rho_B > 0) & (rho_B <= 1)", "rho_B > 0"),
    ("all-wrong groups are forgotten", "p**group_size + (1.0 - p) ** group_size", "p**group_size"),
]

_FOLD = "    return kept_P * alpha_P + success_P, kept_P * beta_P + failure_P, latest_P"
_READ = "    return kept_P * alpha_P + floor / 2.0, kept_P * beta_P + floor / 2.0"
_DECAY = "np.power(float(rho), np.maximum(elapsed, 0).astype(np.float64))"
_LATE = "weight_B = decay(latest_P[position_B] - version_B, rho)"

EVENT_TIME = [
    ("a late outcome weighs 1", _LATE, "weight_B = decay(0 * version_B, rho)"),
    ("a late outcome decays from its arrival", _LATE, "weight_B = decay(newest_P[position_B] - version_B, rho)"),
    ("the newest outcome decays too", _LATE, _LATE.replace("- version_B", "- version_B + 1")),
    ("weights of all outcomes at the newest of the call", _LATE, "weight_B = decay(latest_P.max() - version_B, rho)"),
    ("old evidence is not discounted", _FOLD, _FOLD.replace("kept_P * ", "")),
    ("old failures are not discounted", _FOLD, _FOLD.replace("kept_P * beta_P", "beta_P")),
    (
        "successes and failures swapped",
        _FOLD,
        _FOLD.replace("success", "x").replace("failure", "success").replace("x_P", "failure_P"),
    ),
    ("the newest event stays where it was", _FOLD, _FOLD.replace("latest_P", "newest_P")),
    (
        "the newest event is the last one received",
        "np.maximum.at(latest_P, position_B, version_B)",
        "latest_P[position_B] = version_B",
    ),
    (
        "only the last outcome of a prompt counts",
        "success_P = np.bincount(position_B, weights=weight_B * reward_B, minlength=rows)",
        "success_P = np.zeros(rows)\n    success_P[position_B] = weight_B * reward_B",
    ),
    ("failures without the weight of their version", "weights=weight_B * (1.0 - reward_B)", "weights=1.0 - reward_B"),
    ("a stale reader weighs evidence up", _DECAY, _DECAY.replace("np.maximum(elapsed, 0)", "elapsed")),
    ("e to the power instead of rho", _DECAY, _DECAY.replace("float(rho)", "np.exp(float(rho) - 1.0)")),
    ("rho and 1 - rho swapped", _DECAY, _DECAY.replace("float(rho)", "max(1.0 - float(rho), 1e-3)")),
    (
        "decay in single precision",
        _DECAY,
        _DECAY.replace("float64", "float32").replace("float(rho)", "np.float32(rho)"),
    ),
    ("evidence is read where it stands", _READ, _READ.replace("kept_P * ", "")),
    ("the floor is added whole to both", _READ, _READ.replace(" / 2.0", "")),
    ("the floor is a success", _READ, "    return kept_P * alpha_P + floor, kept_P * beta_P"),
    ("the floor decays", _READ, _READ.replace("floor / 2.0", "kept_P * floor / 2.0")),
    ("no floor", _READ, _READ.replace(" + floor / 2.0", "")),
    ("the value is read after decaying", "    if floor == 0.0:", "    if floor == 0.0 and rho == 1.0:"),
    ("the value is read without the floor", "    if floor == 0.0:", "    if floor >= 0.0:"),
    ("versions beyond int64 wrap around", "require(array <= largest,", "require(array >= 0,"),
    ("negative versions are let in", 'require(version_B >= 0, "version_B"', 'require(version_B >= -9, "version_B"'),
    ("rewards above their range are let in", "(reward_B >= 0) & (reward_B <= 1)", "reward_B >= 0"),
]

FORGETTING = [
    ("e to the power instead of 2", "np.exp2(", "np.exp("),
    ("retention grows with divergence", "np.exp2(-divergence", "np.exp2(divergence"),
    ("multiplied by the half-life", "divergence / half_life", "divergence * half_life"),
    ("another default half-life", "half_life: float = 0.06", "half_life: float = 0.12"),
    ("no lower bound", _CLIP, _CLIP.replace("rho_min", "0.0")),
    ("no upper bound", _CLIP, _CLIP.replace("rho_max", "1.0")),
    ("bounds swapped", _CLIP, _CLIP.replace("rho_min, rho_max", "rho_max, rho_min")),
    ("negative divergence is let in", "require(divergence >= 0", "require(~np.isnan(divergence)"),
]

SAMPLING = [
    ("variance instead of deviation", "np.sqrt(value_P * (1.0 - value_P))", "(value_P * (1.0 - value_P))"),
    ("deviation with a wrong sign", "(1.0 - value_P))", "(1.0 + value_P))"),
    ("epsilon dropped from the weight", "bounded_P**gamma + epsilon", "bounded_P**gamma"),
    ("gamma with the wrong sign", "/ bounded_P**gamma", "* bounded_P**gamma"),
    ("N_eff without its floor", "np.maximum(n_eff_P, 1.0)", "n_eff_P + 1e-300"),
    ("clocks slower for heavy slots", _CLOCKS, _CLOCKS.replace(" - ", " + ")),
    ("clocks that ignore the weight", _CLOCKS, _CLOCKS.replace(" - np.log(weight_P[racing])", "")),
    ("uniform clocks", _CLOCKS, _CLOCKS.replace("standard_exponential", "random")),
    ("winners in slot order", 'first[np.argsort(time[first], kind="stable")]', "np.sort(first)"),
    ("the race lets taken slots in again", "free_P[taken] = False", "pass"),
    (
        "weightless slots in slot order",
        "rng.choice(weightless, size - winners.size, replace=False)",
        "weightless[: size - winners.size]",
    ),
    (
        "share of the mass that is left",
        _SHARE,
        "        drawn = weight_P[slot_B]\n        return np.asarray(drawn / (total - np.cumsum(drawn) + drawn))",
    ),
    ("share of the mass that was drawn", _SHARE, _SHARE.replace("total", "weight_P[slot_B].sum()")),
    ("distinct slots in slot order", "slots[np.sort(first)]", "np.sort(slots[first])"),
    ("infinite weights are let in", "np.isfinite(array) & (array >= 0)", "array >= 0"),
    ("negative weights are let in", "np.isfinite(array) & (array >= 0)", "np.isfinite(array)"),
    ("block sums stay as they were built", _RESUM, "        pass"),
    ("cumulative sums stay as they were", "        self._cumulative = None", "        pass"),
    (
        "block sums by differences",
        f"{_STORE}\n{_TOUCHED}\n{_RESUM}",
        f"        change_B = weight_B - self.weight_P[slot_B]\n{_STORE}\n{_TOUCHED}\n"
        "        np.add.at(self._block_sums, slot_B // self._blocks.shape[1], change_B)",
    ),
    ("squares stay as they were built", _RESQUARE, "        pass"),
    ("squares of the first rows only", "range(0, len(blocks), ROWS_AT_ONCE)", "range(0, 1, ROWS_AT_ONCE)"),
    ("squares of weights in units of their block", "np.square(self._block_largest / largest) * ", ""),
    ("squares without a unit", "np.square(blocks[part] / unit[part])", "np.square(blocks[part])"),
    (
        "uniform within a block",
        _ELEMENT,
        "element_C = (uniform[:, 1] * (self._blocks[block_C] > 0).sum(axis=1)).astype(int)",
    ),
    ("block and element from one random number", _ELEMENT, _ELEMENT.replace("1:]).sum", ":1]).sum")),
    (
        "draws with replacement ignore the weight",
        "slot_B = _locate(np.cumsum(weight_P), rng.random(size))",
        "slot_B = rng.integers(weight_P.size, size=size)",
    ),
    ("what is taken is drawn", "candidates[~np.isin(candidates, taken_X)]", "candidates"),
    ("what is taken races", "gone = np.concatenate([taken_X, slot_B])", "gone = slot_B"),
    (
        "share of all the weight",
        "total = _checked_total(self._total_without(taken_X))",
        "total = _checked_total(self.total)",
    ),
    (
        "what is free by subtraction",
        "return float(np.cumsum(sums)[-1])",
        "return max(self.total - float(self.weight_P[taken_X].sum()), 0.0)",
    ),
    ("what is taken counts as available", "available = self._size - taken_X.size", "available = self._size"),
    ("places instead of slots", "return free[place_B], share_B", "return place_B, share_B"),
    ("quota: always rounded down", "point = math.floor(reached + u)", "point = math.floor(reached)"),
    (
        "quota: rounded to the nearest",
        "point = math.floor(reached + u)",
        "point = math.floor(reached + Fraction(1, 2))",
    ),
    (
        "quota: every source rounded by itself",
        "counts.append(point - last)",
        "counts.append(math.floor(exact + u))",
    ),
    ("quota: binary shares", "Fraction(repr(share))", "Fraction(share)"),
    ("quota: shares not normalised", "part * int(size) / total", "part * int(size)"),
    ("quota: most is one more than fewest", "math.ceil(exact)", "math.floor(exact) + 1"),
]

ADVANTAGE = [
    ("biased std", "(total - 1.0)", "total"),
    ("eps dropped", "/ (total - 1.0)) + eps", "/ (total - 1.0))"),
    (
        "variance instead of std",
        "scale = np.sqrt((weight_B * centred_B**2).sum() / (total - 1.0))",
        "scale = (weight_B * centred_B**2).sum() / (total - 1.0)",
    ),
    ("not centred", "centred_B = raw_B - (weight_B * raw_B).sum() / total", "centred_B = raw_B"),
    ("centred with the wrong sign", "centred_B = raw_B - (", "centred_B = raw_B + ("),
    ("mean without token weights", "(weight_B * raw_B).sum() / total", "raw_B[live_B].mean()"),
    ("mean with padding", "(weight_B * raw_B).sum() / total", "raw_B.sum() / total"),
    ("variance without token weights", "(weight_B * centred_B**2).sum()", "(centred_B[live_B] ** 2).sum()"),
    ("token measure weighs rows alike", _TOKENS, "    return (count_B > 0).astype(np.float64)"),
    ("trajectory measure weighs by length", _TOKENS, "    return count_B"),
    ("padding rows take part", _TOKENS, _TOKENS.replace("(count_B > 0).astype(np.float64)", "np.ones_like(raw_B)")),
    ("padding rows get an advantage", "np.where(live_B, centred_B / scale, 0.0)", "centred_B / scale"),
    ("multiplied by the std", "centred_B / scale", "centred_B * scale"),
    ("equal advantages are divided by their rounding", " or np.ptp(raw_B[live_B]) == 0.0", ""),
]

DIVERGENCE = [
    ("numpy: signed difference", "np.abs(then_BT - now_BT)", "(then_BT - now_BT)"),
    ("numpy: squared difference", "np.abs(then_BT - now_BT)", "np.square(then_BT - now_BT)"),
    ("numpy: sum instead of mean", " / np.maximum(token_count_B, 1)", ""),
    ("numpy: mean over all positions", " / np.maximum(token_count_B, 1)", " / max(mask_BT.shape[1], 1)"),
    (
        "numpy: mask ignored in the sum",
        "np.where(kept_BT, then_BT, 0.0), np.where(kept_BT, now_BT, 0.0)",
        "then_BT, now_BT",
    ),
    ("torch: signed difference", "(then_BT - now_BT).abs()", "(then_BT - now_BT)"),
    ("torch: sum instead of mean", " / token_count_B.clamp(min=1)", ""),
    ("torch: no response gives NaN", "token_count_B.clamp(min=1)", "token_count_B"),
    (
        "torch: mask ignored on one side",
        "then_BT.detach().to(dtype).masked_fill(~kept_BT, 0.0)",
        "then_BT.detach().to(dtype)",
    ),
    ("torch: sums in half precision", _PROMOTE, "torch.promote_types(then_BT.dtype, now_BT.dtype)"),
]

_FACTOR = "np.prod(wrong_Pk / (n_P[..., None] - taken), axis=-1)"
_WRONG = "wrong_Pk = n_P[..., None] - c_P[..., None] - taken"
_MODAL = "modal_ZA @ right_A / np.maximum(modal_ZA.sum(axis=1), 1)"
_RESAMPLED = "count_ZP @ value_P / value_P.size"
_BOUNDS = "[(1 - level) / 2, (1 + level) / 2]"

EVALUATION = [
    ("pass@k with replacement", _FACTOR, "np.prod((1 - c_P / n_P)[..., None] + 0 * taken, axis=-1)"),
    ("pass@k of the wrong ones", _WRONG, "wrong_Pk = c_P[..., None] - taken"),
    ("the numerator stands still", _WRONG, _WRONG.replace(" - taken", " - 0 * taken")),
    ("one response too few", "taken = np.arange(k,", "taken = np.arange(max(k - 1, 1),"),
    ("probability that all k are wrong", "np.asarray(1.0 - np.prod", "np.asarray(np.prod"),
    ("more right ones than responses", "(c_P >= 0) & (c_P <= n_P)", "(c_P >= 0)"),
    ("k beyond n gives a number", "(n_P >= k)", "(n_P >= 1)"),
    ("average over prompts", "_graded(correct_PG).mean(axis=1)", "_graded(correct_PG).mean(axis=0)"),
    ("missing answers vote", "if answer != MISSING]", "if answer is not None]"),
    ("the first of tied answers wins", _MODAL, "right_A[modal_ZA.argmax(axis=1)] if right_A.size else most_Z"),
    ("a tie goes to the right answer", _MODAL, "(modal_ZA * right_A).max(axis=1, initial=0.0)"),
    ("a tie counts each answer whole", _MODAL, "modal_ZA @ right_A"),
    ("votes do not count", "(count_ZA == most_Z[:, None]) & (count_ZA > 0)", "count_ZA > 0"),
    ("the rarest answer wins", "count_ZA.max(axis=1, initial=0.0)", "count_ZA.min(axis=1, initial=9e9)"),
    (
        "one right response makes an answer right",
        "vote_AG @ graded_G / np.maximum(vote_AG.sum(axis=1), 1.0)",
        "(vote_AG @ graded_G > 0) * 1.0",
    ),
    ("subsets of one response too many", "(order_ZG < k)", "(order_ZG <= k)"),
    ("the first k responses instead of subsets", "(order_ZG < k)", "(np.arange(n) < k + 0 * order_ZG)"),
    ("all prompts share their subsets", "np.random.default_rng([seed, position])", "np.random.default_rng([seed, 0])"),
    ("the seed is ignored", "np.random.default_rng([seed, position])", "np.random.default_rng([0, position])"),
    ("resampled sums", _RESAMPLED, "count_ZP @ value_P"),
    ("benchmarks weighted by their prompts", "np.mean([stratum.mean() for stratum in strata])", "value_P.mean()"),
    (
        "resampled across benchmarks",
        "return [value_P[names_P == name] for name in np.unique(names_P)]",
        "return [value_P]",
    ),
    ("one-sided interval", _BOUNDS, "[1 - level, level]"),
    ("bounds swapped", _BOUNDS, "[(1 + level) / 2, (1 - level) / 2]"),
    ("the interval's seed is ignored", "rng = np.random.default_rng(seed)", "rng = np.random.default_rng(0)"),
    ("the difference is turned round", "value_P - other_P, stratum", "other_P - value_P, stratum"),
    ("the sum instead of the difference", "value_P - other_P, stratum", "value_P + other_P, stratum"),
]

CHECKS = [
    (
        "single precision",
        "np.asarray(array, dtype=np.float64)",
        "np.asarray(np.asarray(array, np.float32), np.float64)",
    ),
    ("one right element is enough", "if np.all(holds):", "if np.any(holds) or array.size == 0:"),
    ("shapes may differ", "array in named.values()}) > 1", "array in named.values()}) > 9"),
]

_PRECISION = "+ np.diag(precision_F)"
_ROOT = "np.sqrt(np.maximum(n_eff_B, 1.0))"
_GRADIENT = "- precision_F * (coefficient_F - prior_F)"

CALIBRATION = [
    ("the prior's slope is 0", "    prior_F[0] = 1.0\n", ""),
    ("the prior's intercept is 1", "    prior_F[0] = 1.0\n", "    prior_F[:2] = 1.0\n"),
    ("the penalty draws to 0", _GRADIENT, "- precision_F * coefficient_F"),
    ("no penalty in the gradient", _GRADIENT, ""),
    ("a Hessian without the prior", _PRECISION, "+ 1e-9 * np.diag(precision_F)"),
    ("half of the penalty in J", "fit - 0.5 * (precision_F", "fit - 0.25 * (precision_F"),
    ("failures are fitted", "weight_B * (reward_B - p_B)", "weight_B * (1.0 - reward_B - p_B)"),
    ("weights are ignored in the gradient", "weight_B * (reward_B - p_B)", "(reward_B - p_B)"),
    ("weights are ignored in J", "fit = weight_B @ (", "fit = np.sum("),
    ("one Newton step", "MOST_STEPS = 100", "MOST_STEPS = 1"),
    ("the value's sign is lost", "1.0 / (1.0 + np.exp(-logit))", "1.0 / (1.0 + np.exp(logit))"),
    ("a logit without its failures", "np.log(clipped_B / (1.0 - clipped_B))", "np.log(clipped_B)"),
    ("values are not clipped above", "np.clip(value_B, clip, 1.0 - clip)", "np.clip(value_B, clip, 1.0 - 1e-15)"),
    ("values are not clipped below", "np.clip(value_B, clip, 1.0 - clip)", "np.clip(value_B, 1e-15, 1.0 - clip)"),
    ("N_eff without its root", f"logit_B / {_ROOT}", "logit_B / np.maximum(n_eff_B, 1.0)"),
    ("N_eff without its floor", f"logit_B / {_ROOT}", f"logit_B / {_ROOT.replace('1.0', '1e-9')}"),
    ("age as it is", ", np.log1p(age_B)]", ", age_B]"),
    ("the next data source", "index_B[:, None] == np.arange(sources)", "index_B[:, None] == np.arange(sources) + 1"),
    ("indicators of a single source", "if sources > 1:", "if sources > 0:"),
    ("extra columns are left out", "        parts.append(extra_BF)\n", ""),
    ("a prompt without an indicator has the last one", "np.append(by_source_Q, 0.0)", "by_source_Q"),
    ("extra columns are not read", "read_B += coefficient * extra_BF[:, number]", "pass"),
    ("the first extra column is read for all", "coefficient * extra_BF[:, number]", "coefficient * extra_BF[:, 0]"),
    ("coefficients of sources are those of extra columns", "[len(coefficient_F) - fewest])", "[extra_BF.shape[1]])"),
    ("N_eff has no part in what is read", f"(slope + by_mass / {_ROOT})", "slope"),
    ("what is read has no floor of N_eff", f"by_mass / {_ROOT}", f"by_mass / {_ROOT.replace('1.0', '1e-9')}"),
    ("age as it is in what is read", "by_age * np.log1p(age_B)", "by_age * age_B"),
    ("the intercept is not read", "    read_B += intercept\n", ""),
]

MUTATIONS = tuple(
    Mutation(name, file, old, new)
    for file, rows in (
        ("calibration.py", CALIBRATION),
        ("evidence.py", EVIDENCE),
        ("event_time.py", EVENT_TIME),
        ("forgetting.py", FORGETTING),
        ("sampling.py", SAMPLING),
        ("advantage.py", ADVANTAGE),
        ("divergence.py", DIVERGENCE),
        ("evaluation.py", EVALUATION),
        ("_checks.py", CHECKS),
    )
    for name, old, new in rows
)
