"""What happens to each key of a verl run that is to train with SPO, and why: one table, without scripts."""

from __future__ import annotations

import math
import re
import shlex
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Literal

from spo_verl.errors import SpoConfigError

ESTIMATOR_KEY = "algorithm.adv_estimator"
BATCH = "data.train_batch_size"
MINI_BATCH = "actor_rollout_ref.actor.ppo_mini_batch_size"
REPEATS = "actor_rollout_ref.rollout.n"
STEPS = "trainer.total_training_steps"
EPOCHS = "trainer.total_epochs"
ACTOR = "actor_rollout_ref.actor"
ROLLOUT = "actor_rollout_ref.rollout"
PPO_EPOCHS = f"{ACTOR}.ppo_epochs"

VERL_DEFAULTS: dict[str, str] = {
    ESTIMATOR_KEY: "gae",
    BATCH: "1024",
    MINI_BATCH: "256",
    REPEATS: "1",
    STEPS: "null",
    EPOCHS: "30",
    "data.train_max_samples": "-1",
    f"{ACTOR}.clip_ratio_low": "0.2",
    f"{ACTOR}.clip_ratio_high": "0.2",
    f"{ACTOR}.clip_ratio_c": "3.0",
    f"{ACTOR}.use_kl_loss": "False",
    f"{ACTOR}.entropy_coeff": "0",
    f"{ACTOR}.loss_agg_mode": "token-mean",
    f"{ACTOR}.policy_loss.loss_mode": "vanilla",
    f"{ROLLOUT}.temperature": "1.0",
    f"{ROLLOUT}.top_p": "1",
    f"{ROLLOUT}.top_k": "-1",
}
"""verl 0.9.1's values of the keys that count here (a test compares)."""

PRESET_CLIPS = {f"{ACTOR}.clip_ratio_low": "0.2", f"{ACTOR}.clip_ratio_high": "0.28", f"{ACTOR}.clip_ratio_c": "10.0"}

_GROUP = "its group of responses is replaced by the tracker's value of each prompt"
CONVERTED: dict[str, str] = {
    "grpo": _GROUP,
    "grpo_vectorized": _GROUP,
    "rloo": _GROUP,
    "rloo_vectorized": _GROUP,
    "reinforce_plus_plus": "its baseline of the batch is replaced by the tracker's value of each prompt",
    "reinforce_plus_plus_baseline": _GROUP,
    "remax": "its greedy response is replaced by the tracker's value of each prompt, and is not generated any more",
    "opo": _GROUP,
    "gpg": _GROUP,
    "gae": "its critic is replaced by the tracker's value of each prompt",
    "optimal_token_baseline": _GROUP,
    "tir_optimal_token_baseline": _GROUP,
}
REFUSED: dict[str, str] = {
    "grpo_passk": "it trains the best response of a group (pass@k), and SPO each response for itself; "
    "there is no SPO run with that objective",
    "gdpo": "it normalises several rewards apart, and SPO keeps one success rate per prompt; choose one reward with "
    "spo.reward.key, change algorithm.adv_estimator to grpo, and convert that",
}

Action = Literal["set", "scale", "drop", "add", "keep", "preset"]


@dataclass(frozen=True)
class KeyChange:
    """What becomes of one key.

    Attributes:
        key: verl's or SPO's.
        action: ``set`` to another value, ``scale`` by the old ``rollout.n``, ``drop``, ``add``, ``keep`` on purpose, or
            left to the ``preset``.
        before: its value, or verl's default in brackets; None without either.
        after: its value in the SPO run; None where it is dropped.
        reason: one sentence.
    """

    key: str
    action: Action
    before: str | None
    after: str | None
    reason: str


@dataclass(frozen=True)
class RunValues:
    """The values of a run.

    Attributes:
        given: what its command sets, key to text; of repeated keys the last.
        base: of a configuration file of its own: the values that differ from verl's defaults.
        unknown: keys of ``given`` whose value only the machine knows.
    """

    given: Mapping[str, str]
    base: Mapping[str, str] = field(default_factory=dict)
    unknown: Mapping[str, str] = field(default_factory=dict)

    def text(self, key: str) -> str | None:
        found = self.given.get(key, self.base.get(key, VERL_DEFAULTS.get(key)))
        return None if found is None else found.strip().strip("'\"").strip()

    def shown(self, key: str) -> str | None:
        """The value for a table; verl's default in brackets."""
        found = self.given.get(key, self.base.get(key))
        return found if found is not None else f"({VERL_DEFAULTS[key]})" if key in VERL_DEFAULTS else None

    def number(self, key: str) -> int:
        """A whole number from 1 on.

        Raises:
            SpoConfigError: the value is something else, or only known when the script runs.
        """
        text = self.text(self.refers(key) or key) or ""
        if key in self.unknown:
            raise SpoConfigError(
                f"{key}={text}: its value is only known when the script runs; give its variables with "
                "--env NAME=VALUE, or the script's arguments after its name"
            )
        plain = text.replace("_", "")
        if not re.fullmatch(r"\+?[0-9]{1,12}", plain) or int(plain) < 1:
            raise SpoConfigError(f"{key}={text}: a whole number from 1 on is needed; correct it, then convert")
        return int(plain)

    def refers(self, key: str) -> str | None:
        """The key whose value it takes (``${data.train_batch_size}``), if that is scaled too."""
        found = re.fullmatch(r"\$\{([\w.]+)\}", self.text(key) or "")
        return found[1] if found and found[1] in (BATCH, MINI_BATCH) and found[1] != key else None

    def on(self, key: str) -> bool:
        return (self.text(key) or "").lower() in ("true", "1", "yes", "on")


@dataclass(frozen=True)
class Decisions:
    """All decisions about one run.

    Attributes:
        changes: in the order of a reader's interest.
        needs: what the dataset and the user have to bring, as sentences.
        already: it trains with SPO as it is.
    """

    changes: tuple[KeyChange, ...]
    needs: tuple[str, ...]
    already: bool = False


@dataclass(frozen=True)
class _Unwanted:
    """A key that SPO refuses or ignores: dropped with the keys that depend on it, else set to ``neutral``."""

    key: str
    bad: Callable[[RunValues], bool]
    neutral: str | None
    reason: str
    with_it: tuple[str, ...] = ()


def _is_on(key: str) -> Callable[[RunValues], bool]:
    return lambda run: run.on(key)


def _estimated_by(*names: str) -> Callable[[RunValues], bool]:
    return lambda run: run.text(ESTIMATOR_KEY) in names


def _is_set(key: str) -> Callable[[RunValues], bool]:
    return lambda run: (run.text(key) or "null").lower() not in ("null", "none")


_DISCOUNT = "the value of a prompt has no time within a response: nothing is discounted"
UNWANTED: tuple[_Unwanted, ...] = (
    _Unwanted(
        "algorithm.norm_adv_by_std_in_grpo",
        _is_set("algorithm.norm_adv_by_std_in_grpo"),
        None,
        "SPO normalises over the whole batch, not over a group",
    ),
    _Unwanted(
        "algorithm.use_kl_in_reward",
        _is_on("algorithm.use_kl_in_reward"),
        None,
        "the tracker's values are success rates: a reward must not hold a penalty (the preset sets False)",
        ("algorithm.kl_ctrl.", "algorithm.kl_penalty"),
    ),
    _Unwanted(
        "algorithm.filter_groups.enable",
        _is_on("algorithm.filter_groups.enable"),
        "False",
        "dynamic sampling throws away groups without signal; with one response per prompt that is every one, and the "
        "tracker draws prompts by what there is to learn",
        ("algorithm.filter_groups.",),
    ),
    _Unwanted("data.gen_batch_size", _is_set("data.gen_batch_size"), None, "the tracker draws a whole batch at once"),
    _Unwanted("algorithm.gamma", _estimated_by("gae", "reinforce_plus_plus"), None, _DISCOUNT),
    _Unwanted("algorithm.lam", _estimated_by("gae"), None, _DISCOUNT),
    _Unwanted(
        "critic.enable", _is_on("critic.enable"), "null", "the tracker is the baseline: a critic would train unused"
    ),
    _Unwanted(
        "trainer.critic_warmup",
        lambda run: (run.text("trainer.critic_warmup") or "0") != "0",
        "0",
        "there is no critic to warm up: the first steps would train nothing",
    ),
    _Unwanted(
        "trainer.use_v1",
        lambda run: not run.on("trainer.use_v1") and run.text("trainer.use_v1") is not None,
        "True",
        "SPO lives in verl's V1 trainer, which is the default",
    ),
    _Unwanted(
        "skip.rollout_tq.enable",
        _is_on("skip.rollout_tq.enable"),
        "False",
        "replayed rollouts have no frozen value",
        ("skip.rollout_tq.",),
    ),
    _Unwanted(
        "algorithm.use_pf_ppo",
        _is_on("algorithm.use_pf_ppo"),
        "False",
        "it draws responses again by their reward, which would change the evidence of prompts",
        ("algorithm.pf_ppo.",),
    ),
    _Unwanted(
        f"{ACTOR}.policy_loss.loss_mode",
        lambda run: run.text(f"{ACTOR}.policy_loss.loss_mode") == "gpg",
        "vanilla",
        "GPG's loss has no ratio to clip; SPO's is the clipped one, verl's default",
    ),
)

_YOURS = "yours; the paper has {paper}"
KEPT: dict[str, str] = {
    f"{ACTOR}.clip_ratio_low": _YOURS.format(paper="0.2"),
    f"{ACTOR}.clip_ratio_high": _YOURS.format(paper="0.28"),
    f"{ACTOR}.clip_ratio_c": _YOURS.format(paper="10"),
    f"{ACTOR}.use_kl_loss": "a KL loss goes together with SPO; the paper has none, and without it no reference model",
    f"{ACTOR}.entropy_coeff": _YOURS.format(paper="0"),
    f"{ACTOR}.loss_agg_mode": _YOURS.format(paper="token-mean"),
    f"{ACTOR}.policy_loss.loss_mode": "yours; the paper has vanilla, the clipped loss",
    f"{ROLLOUT}.temperature": _YOURS.format(paper="1"),
    f"{ROLLOUT}.top_p": _YOURS.format(paper="1"),
    f"{ROLLOUT}.top_k": _YOURS.format(paper="-1"),
}
"""Keys that a preset sets too: the command line wins, so a value that differs from the preset is kept on purpose."""
PAPER = {
    f"{ACTOR}.use_kl_loss": "False",
    f"{ACTOR}.entropy_coeff": "0",
    f"{ACTOR}.loss_agg_mode": "token-mean",
    f"{ACTOR}.policy_loss.loss_mode": "vanilla",
    f"{ROLLOUT}.temperature": "1.0",
    f"{ROLLOUT}.top_p": "1",
    f"{ROLLOUT}.top_k": "-1",
    **PRESET_CLIPS,
}
_SCORED_BY_MODEL = ("reward_model.enable", "reward.reward_model.enable")
_REWARD_MODEL = " This run has a reward model, whose scores have no bounds: bound them in the reward function."
_ROUTER_REPLAY = tuple(f"{ACTOR}.{engine}router_replay.mode" for engine in ("", "fsdp_config.", "megatron.", "veomni."))
_DAPO = ("reward_model.reward_manager", "reward.reward_manager.name")
_OVERLONG = tuple(f"{section}.reward_kwargs.overlong_buffer_cfg" for section in ("reward_model", "reward"))


def decide(run: RunValues, *, preset: str = "paper", rows: int | None = None) -> Decisions:
    """What becomes of a run.

    Args:
        run: its values.
        preset: the preset that is composed; a preset that the run names already wins.
        rows: of the training data, where known.

    Raises:
        SpoConfigError: SPO cannot take its place, with the reason.
    """
    estimator = (run.text(ESTIMATOR_KEY) or "").lower()
    if ESTIMATOR_KEY in run.unknown:
        raise SpoConfigError(
            f"{ESTIMATOR_KEY}={estimator}: the estimator is only known when the script runs; give its variables with "
            "--env NAME=VALUE"
        )
    composed = run.text("spo")
    if estimator == "spo" or (ESTIMATOR_KEY not in run.given and ESTIMATOR_KEY not in run.base and composed):
        return Decisions((), (), already=True)
    if estimator in REFUSED:
        raise SpoConfigError(f"{ESTIMATOR_KEY}={estimator} is not converted: {REFUSED[estimator]}.")
    if estimator not in CONVERTED:
        raise SpoConfigError(
            f"{ESTIMATOR_KEY}={estimator} is no estimator of verl 0.9.1, and what its settings mean is not known; "
            f"convert a run with one of {', '.join(sorted(CONVERTED))}."
        )
    preset = composed or preset
    changes = [KeyChange(ESTIMATOR_KEY, "set", run.shown(ESTIMATOR_KEY), "spo", CONVERTED[estimator])]
    if composed is None:
        changes.append(KeyChange("spo", "add", None, preset, "the tracker's settings, and verl's keys as in the paper"))
    elif REPEATS not in run.given and REPEATS not in run.base:
        run = RunValues({**run.given, REPEATS: "4" if preset == "bspo" else "1"}, run.base, run.unknown)
    needs: list[str] = []
    changes += _sizes(run, preset, rows, needs)
    changes += _unwanted(run, estimator)
    changes += _kept(run)
    changes += _added(run, preset)
    low, high = (_bound(run, changes, end) for end in ("low", "high"))
    needs += [
        "without offline values every prompt starts at a success rate of 1/2. To estimate them: `spo-verl values "
        f"estimate {_estimated(run)} -o values.parquet <overrides>`, then add spo.initial.values=values.parquet.",
        f"rewards lie in [{low}, {high}]; for others declare spo.reward.low and spo.reward.high, or choose "
        "spo.reward.key." + (_REWARD_MODEL if any(run.on(key) for key in _SCORED_BY_MODEL) else ""),
        "give the run a trainer.experiment_name and trainer.default_local_dir of its own: with "
        "trainer.resume_mode=auto it would continue from the old run's checkpoints.",
    ]
    return Decisions(tuple(changes), tuple(needs))


def _estimated(run: RunValues) -> str:
    """Model and training data as ``spo-verl values estimate`` takes them: a list of files has commas alone."""
    words = []
    for key, otherwise in (("actor_rollout_ref.model.path", "MODEL"), ("data.train_files", "DATA")):
        text = run.text(key) or otherwise
        files = [one.strip().strip("'\"") for one in text.removeprefix("[").removesuffix("]").split(",")]
        words.append(text if key in run.unknown else shlex.quote(",".join(files)))
    return " ".join(words)


def _bound(run: RunValues, changes: Iterable[KeyChange], end: str) -> str:
    """One end of the range of rewards that the converted run declares."""
    key = f"spo.reward.{end}"
    added = next((one.after for one in changes if one.key == key), None)
    return added or run.text(key) or {"low": "0", "high": "1"}[end]


def _sizes(run: RunValues, preset: str, rows: int | None, needs: list[str]) -> Iterable[KeyChange]:
    repeats, batch, mini = run.number(REPEATS), run.number(BATCH), run.number(MINI_BATCH)
    trajectories = batch * repeats
    limit = run.text("data.train_max_samples") or "-1"
    if rows is not None and re.fullmatch(r"[1-9][0-9]{0,11}", limit):
        rows = min(rows, int(limit))
    drawn = batch if preset == "bspo" else trajectories
    if rows is not None and rows < drawn:
        raise SpoConfigError(
            f"a step would draw {drawn} different prompts ({batch} x {repeats}), and the training data has {rows} "
            "rows: "
            + (
                f"lower {BATCH} first."
                if preset == "bspo" or batch > rows
                else f"--preset bspo keeps {batch} prompts with {repeats} responses each."
            )
        )
    needs.append(
        f"at least {drawn} different prompts in the training data"
        + (f", which has {rows} rows" if rows is not None else "")
        + ": a prompt is drawn at most once per step."
    )
    if preset == "bspo":
        yield KeyChange(
            REPEATS,
            "keep" if REPEATS in run.given else "add",
            run.shown(REPEATS),
            str(repeats),
            "bspo: several independent responses per prompt share one value",
        )
        yield KeyChange(
            BATCH, "keep", run.shown(BATCH), str(batch), f"prompts per step: {trajectories} trajectories, as before"
        )
        return
    if repeats == 1:
        yield KeyChange(BATCH, "keep", run.shown(BATCH), str(batch), f"{batch} trajectories per step, as before")
        yield KeyChange(MINI_BATCH, "keep", run.shown(MINI_BATCH), str(mini), "the number of updates per step stays")
        return
    yield KeyChange(REPEATS, "set", run.shown(REPEATS), "1", "one response per prompt")
    yield _scaled(
        run, BATCH, batch, repeats, f"prompts per step: {batch} x {repeats} = {trajectories} trajectories, as before"
    )
    updates = math.ceil(batch / mini)  # verl fills up the last mini-batch
    per = "step" if (run.text(PPO_EPOCHS) or "1") == "1" else "PPO epoch"
    yield _scaled(
        run,
        MINI_BATCH,
        mini,
        repeats,
        f"prompts, which verl multiplies by rollout.n: {mini} x {repeats} = {mini * repeats} trajectories, so "
        f"{updates} {'update' if updates == 1 else 'updates'} per {per}, as before",
    )
    yield from _steps(run, batch, repeats, rows, needs)


def _steps(run: RunValues, batch: int, repeats: int, rows: int | None, needs: list[str]) -> Iterable[KeyChange]:
    if (run.text(STEPS) or "null").lower() not in ("null", "none"):
        yield KeyChange(STEPS, "keep", run.shown(STEPS), run.text(STEPS), "the same number of steps; SPO has no epochs")
        return
    epochs = run.number(EPOCHS)
    if rows is not None:
        steps = rows // batch * epochs
        if run.on("data.filter_overlong_prompts"):
            needs.append(
                f"data.filter_overlong_prompts drops prompts that are too long: {STEPS}={steps} is right if {rows} "
                "rows are left, as verl prints at its start; --rows N takes another number."
            )
        yield KeyChange(
            STEPS,
            "set" if STEPS in run.given else "add",
            run.shown(STEPS),
            str(steps),
            f"as before: {rows} rows // {batch} prompts x {epochs} epochs; with {batch * repeats} prompts per step "
            "verl would count fewer",
        )
        return
    yield _scaled(
        run,
        EPOCHS,
        epochs,
        repeats,
        f"verl counts rows // {BATCH} steps per epoch, {repeats} times fewer now; so {repeats} times the epochs, up to "
        "rounding",
    )
    needs.append(
        f"the number of steps is rows // {batch * repeats} x {epochs * repeats}; --rows N (of the training data) "
        f"writes the old run's number, rows // {batch} x {epochs}, as {STEPS}."
    )


def _scaled(run: RunValues, key: str, number: int, repeats: int, reason: str) -> KeyChange:
    """A number that the old ``rollout.n`` multiplies; what refers to another such key follows by itself."""
    if key not in run.given:
        return KeyChange(key, "add", run.shown(key), str(number * repeats), reason)
    if run.refers(key):
        return KeyChange(key, "keep", run.given[key], run.given[key], f"{reason}; it follows by itself")
    return KeyChange(key, "scale", run.given[key], str(number * repeats), reason)


def _unwanted(run: RunValues, estimator: str) -> Iterable[KeyChange]:
    dropped: set[str] = set()
    for one in UNWANTED:
        if not one.bad(run):
            continue
        in_file = one.neutral is not None and one.key in run.base
        names = [key for key in run.given if key == one.key or key.startswith(one.with_it or ("\n",))]
        if in_file:
            before = run.shown(one.key)
            yield KeyChange(one.key, "set" if one.key in run.given else "add", before, one.neutral, one.reason)
            names = [key for key in names if key != one.key]
        yield from (KeyChange(key, "drop", run.given[key], None, one.reason) for key in names if key not in dropped)
        dropped.update(names)
    if estimator == "gae" or run.on("critic.enable"):
        names = [key for key in run.given if key.startswith("critic.") and key not in dropped]
        yield from (KeyChange(key, "drop", run.given[key], None, "there is no critic") for key in names)


def _kept(run: RunValues) -> Iterable[KeyChange]:
    for key, reason in KEPT.items():
        value = run.text(key)
        if key in run.given and not _same(value, PAPER[key]) and not (key.endswith("loss_mode") and value == "gpg"):
            yield KeyChange(key, "keep", run.given[key], value, reason)
        elif key in run.base and not _same(value, PAPER[key]) and key in PAPER and not key.endswith("loss_mode"):
            yield KeyChange(key, "add", run.base[key], run.base[key], f"{reason}; a preset would win over your file")
        elif key in PRESET_CLIPS and key not in run.given and not _same(value, PAPER[key]):
            yield KeyChange(
                key, "preset", run.shown(key), PAPER[key], "as in the paper; on the command line your own value wins"
            )
    for key in ("data.shuffle", "data.seed"):
        if key in run.given:
            yield KeyChange(
                key, "keep", run.given[key], run.given[key], "of no effect on the order of prompts: the tracker draws"
            )


def _added(run: RunValues, preset: str) -> Iterable[KeyChange]:
    """Settings of SPO that the run's other keys ask for."""
    replay = next(
        (key for key in _ROUTER_REPLAY if (run.text(key) or "disabled").lower() not in ("disabled", "null")), None
    )
    if preset != "plus_plus":
        if replay is not None:
            yield KeyChange(
                "spo.forgetting.mode", "add", None, "constant", f"{replay}: stored responses have no routes to replay"
            )
        elif run.on("algorithm.rollout_correction.bypass_mode") and preset != "recipe":
            yield KeyChange(
                "spo.forgetting.reference",
                "add",
                None,
                "updated",
                "algorithm.rollout_correction.bypass_mode=True: both sides of the divergence from the training engine",
            )
    if any(run.text(key) == "dapo" for key in _DAPO) and not any(key.startswith("spo.reward.") for key in run.given):
        low = -1.0
        section = next((one for one in _OVERLONG if run.on(f"{one}.enable")), None)
        if section is not None:
            factor = run.text(f"{section}.penalty_factor") or "1"
            low -= float(factor) if re.fullmatch(r"[0-9]{1,6}(\.[0-9]{1,6})?", factor) else 1.0
        yield KeyChange(
            "spo.reward.low",
            "add",
            None,
            f"{low:g}",
            "DAPO scores wrong answers -1"
            + ("" if section is None else ", less the penalty for length")
            + "; for rewards of 0 and 1 without penalty delete it",
        )


def _same(one: str | None, other: str) -> bool:
    if one is None:
        return False
    try:
        return float(one) == float(other)
    except ValueError:
        return one.lower() == other.lower()
