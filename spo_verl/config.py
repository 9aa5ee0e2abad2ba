"""The settings under ``spo.*``: a frozen tree, checked once, all problems in one message.

Every key, its type, default, range and meaning are here and nowhere else; ``conf/spo/paper.yaml`` repeats the
defaults for readers and a test compares the two.
"""

from __future__ import annotations

import copy
import difflib
import functools
import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import field, fields, is_dataclass
from typing import Annotated, Any, Literal, get_type_hints

from pydantic import BeforeValidator, ConfigDict, Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

from spo_verl.errors import SpoConfigError

_CLOSED = ConfigDict(extra="forbid", allow_inf_nan=False)

SamplingMode = Literal["prioritized", "uniform"]
ForgettingMode = Literal["kl", "constant", "version", "drift"]
ReadOut = Literal["raw", "calibrated"]

Positive = Annotated[float, Field(gt=0)]
Share = Annotated[float, Field(ge=0, le=1)]
Retention = Annotated[float, Field(gt=0, le=1)]
Bonus = Annotated[float, Field(ge=0, le=1e100)]
"""Bounded above so that the weights of all prompts can be summed."""
Count = Annotated[int, Field(ge=1, lt=2**63)]
Gib = Annotated[float, BeforeValidator(lambda given: _gib(given)), Field(ge=0)]
"""``off``, false and null are 0; ``on`` and true are 1."""
Seed = Annotated[int, Field(ge=0, lt=2**128)]


def _gib(given: Any) -> Any:
    words = {"off": 0.0, "false": 0.0, "on": 1.0, "true": 1.0, "null": 0.0}
    if given is None or isinstance(given, bool):
        return float(bool(given))
    return words.get(given.lower(), given) if isinstance(given, str) else given


@dataclass(frozen=True, config=_CLOSED)
class RewardConfig:
    """Which number is the reward, and the range that it is declared to lie in."""

    key: str | None = None
    """Key of the reward's extra info (e.g. ``acc``); null: the trajectory's score."""
    low: float = 0.0
    """Lowest reward; the range is mapped to [0, 1]."""
    high: float = 1.0
    """Highest reward; one outside the range stops the run."""


@dataclass(frozen=True, config=_CLOSED)
class InitialConfig:
    """What is known of the prompts before the first step, equation (6)."""

    values: str | None = None
    """Parquet file of offline values; other prompts start at (1/2, 1/2)."""
    prior: Literal["jeffreys", "none"] = "jeffreys"
    """Smoothing of the offline success rates."""
    tracker: str | None = None
    """``spo`` folder of a checkpoint, to start from its values."""


@dataclass(frozen=True, config=_CLOSED)
class ValueConfig:
    """How a prompt's value is read from its evidence."""

    readout: ReadOut = "raw"
    """Value for baselines and sampling weights: alpha / (alpha + beta), or corrected by a fit (docs/algorithm.md)."""
    window: Annotated[int, Field(ge=1, le=1_000_000)] = 2048
    """With ``readout=calibrated``: last outcomes that are fitted."""
    features: list[str] | None = None
    """With ``readout=calibrated``: also fitted, numeric columns (``extra_info.level``) or functions of the dataset
    (``module:function``)."""


@dataclass(frozen=True, config=_CLOSED)
class SamplingConfig:
    """How prompts are drawn, equation (11)."""

    mode: SamplingMode = "prioritized"
    """By the weight of equation (11), or all alike."""
    gamma: Share = 0.0
    """Exponent of the effective sample size."""
    epsilon: Bonus = 0.05
    """Exploration bonus."""
    quota: dict[str, Positive] | None = None
    """Each data source's part of every batch, ``'{openai/gsm8k: 3, code: 1}'``."""
    max_in_flight: Count | None = 1
    """A prompt with so many open rollouts is not drawn; null: no limit."""


@dataclass(frozen=True, config=_CLOSED)
class ForgettingConfig:
    """How fast evidence is discounted as the policy drifts."""

    mode: ForgettingMode = "kl"
    """Retention: ``kl``, by each prompt's divergence; ``constant``, ``rho`` per visit; ``version``, ``rho`` per policy
    version (SPO++); ``drift``, by the policy's movement."""
    reference: Literal["acting", "updated"] = "acting"
    """Policies that the divergence compares (docs/algorithm.md)."""
    half_life: Positive = 0.06
    """D_half: divergence at which half of the evidence is forgotten."""
    rho_min: Retention = 0.875
    """Least retention (``mode=kl``, ``drift``); 1 / (1 - rho_min) is the mass of offline values."""
    rho_max: Retention = 0.96
    """Largest retention (``mode=kl``, ``drift``), that of a first visit."""
    rho: Retention = 0.875
    """Retention of ``mode=constant`` and, per policy version, ``mode=version``."""
    floor: Annotated[float, Field(ge=0)] = 0.0
    """With ``mode=version``: mass of a lasting prior; unvisited prompts return to 1/2."""
    drift_scale: Positive = 1.0
    """With ``mode=drift``: factor on the summed movement."""


@dataclass(frozen=True, config=_CLOSED)
class DriftConfig:
    """Measuring the divergence on stored responses."""

    tokens: Literal["generated", "all"] = "generated"
    """Tokens of the divergence: the policy's, or (published recipe) those of tools too."""
    max_tokens: Count | None = None
    """Stored tokens per response; null: all."""
    measure_both: bool = False
    """Measure the other reference's divergence too."""
    max_prompts: Count | None = None
    """Most stored responses scored per step (null: all); other prompts get the step's mean retention."""


@dataclass(frozen=True, config=_CLOSED)
class AdvantageConfig:
    """From rewards to advantages, equations (8) and (9)."""

    baseline: Literal["value", "initial", "none"] = "value"
    """Subtracted from the reward: the tracker's value or, for ablations, the initial one or nothing."""
    measure: Literal["trajectory", "token"] = "trajectory"
    """Weight of a rollout in the normalisation: 1, or its generated tokens (SPO++)."""
    eps: Annotated[float, Field(ge=0)] = 1e-8
    """Added to the standard deviation."""


@dataclass(frozen=True, config=_CLOSED)
class LateConfig:
    """Rollouts that a batch did not wait for; only in the asynchronous trainer modes."""

    policy: Literal["carry", "abort", "drop"] = "carry"
    """Rollouts that a batch did not wait for: ``carry``, may join a later one; ``abort``, are stopped with their policy
    version; ``drop``, are evidence without training."""
    length_bound: Annotated[float, Field(gt=0, le=1)] | None = None
    """Least share of each batch in the order of dispatch, not of finishing."""


@dataclass(frozen=True, config=_CLOSED)
class EstimateConfig:
    """Estimating offline values instead of training, or before it."""

    output: str | None = None
    """Parquet file to write instead of training; if it is ``spo.initial.values`` too, before it."""
    trials: Count = 8
    """Responses per prompt, n0."""
    chunk: Count = 256
    """Prompts per part, the most that interruptions lose."""


@dataclass(frozen=True, config=_CLOSED)
class SpoConfig:
    """All settings of the plugin."""

    preset: str | None = None
    """Set by the preset: its name."""
    seed: Seed = 0
    """For the draws."""
    bspo: bool = False
    """Several rollouts per prompt (``rollout.n`` > 1) are intended."""
    rollout_n: str | None = None
    """``module:function`` that chooses each prompt's rollouts (docs/async.md); needs ``spo.bspo``."""
    oversample: Annotated[float, Field(ge=0)] | None = None
    """In asynchronous modes: prompts in flight beyond a batch, as a share of it; null: verl's
    ``num_warmup_batches``."""
    record: Gib = 1.0
    """Most GiB of the record (docs/record.md), then its oldest rows are dropped; ``off``: none."""
    samples_every: Count | None = 10
    """Steps between samples and histograms (docs/metrics.md); null: none."""
    reward: RewardConfig = field(default_factory=RewardConfig)
    initial: InitialConfig = field(default_factory=InitialConfig)
    value: ValueConfig = field(default_factory=ValueConfig)
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    forgetting: ForgettingConfig = field(default_factory=ForgettingConfig)
    drift: DriftConfig = field(default_factory=DriftConfig)
    advantage: AdvantageConfig = field(default_factory=AdvantageConfig)
    late: LateConfig = field(default_factory=LateConfig)
    estimate: EstimateConfig = field(default_factory=EstimateConfig)

    @property
    def remembers_responses(self) -> bool:
        """Whether a prompt's last response is stored for the divergence."""
        return self.forgetting.mode == "kl"

    @property
    def references(self) -> tuple[str, ...]:
        """Log-prob columns of the response memory; forgetting uses the first."""
        if not self.remembers_responses:
            return ()
        first = self.forgetting.reference
        other = "updated" if first == "acting" else "acting"
        return (first, other) if self.drift.measure_both else (first,)


def estimates_first(output: object, values: object) -> bool:
    """Whether a run samples the offline values that it then trains from.

    Args:
        output: ``spo.estimate.output``.
        values: ``spo.initial.values``.
    """
    named = isinstance(output, str) and isinstance(values, str)
    return named and os.path.abspath(str(output)) == os.path.abspath(str(values))


def still_to_estimate(output: object, values: object) -> bool:
    """Whether such a run has not sampled them yet; arguments as for :func:`estimates_first`."""
    return estimates_first(output, values) and not os.path.exists(str(output))


def known_keys(cls: type = SpoConfig, prefix: str = "spo") -> Iterator[str]:
    """Yield the dotted name of every setting, in the order of the tree."""
    for entry in fields(cls):
        default = entry.default_factory() if callable(entry.default_factory) else None
        name = f"{prefix}.{entry.name}"
        if default is not None and is_dataclass(default):
            yield from known_keys(type(default), name)
        else:
            yield name


def no_such_setting(key: str, name: str, known: Iterable[str], where: str) -> str:
    """What to say of a setting that does not exist.

    Args:
        key: the setting, as its user wrote it.
        name: what to look for among ``known``: ``key`` or its last part.
        known: names of the settings that exist.
        where: what those names are, said where none is close, e.g. ``the known keys are in conf/spo/paper.yaml.``
    """
    close = difflib.get_close_matches(name, known, n=1)
    return f"{key}: there is no such setting; " + (f"did you mean {close[0]}?" if close else where)


def describe(key: str, error: Mapping[str, Any]) -> str:
    """What to say of a value that pydantic refused; ``error`` is an entry of ``ValidationError.errors()``."""
    return f"{key}={error['input']!r}: {error['msg']}; set {key} accordingly."


def _describe(error: Mapping[str, Any]) -> str:
    if error["loc"][:2] == ("sampling", "quota"):
        source = f" of {error['loc'][2]!r}" if len(error["loc"]) > 2 else ""
        return (
            f"spo.sampling.quota{source}: {error['input']!r}: {error['msg']}; give the name of each data source and a "
            "finite number > 0, in braces, where names may hold dots and slashes: "
            "spo.sampling.quota='{openai/gsm8k: 0.75, code.v2: 0.25}'."
        )
    key = ".".join(["spo", *(str(part) for part in error["loc"] if not str(part).startswith("function-"))])
    if error["type"] == "unexpected_keyword_argument":
        return no_such_setting(key, key, known_keys(), "the known keys are in conf/spo/paper.yaml.")
    return describe(key, error)


def _ranges(config: SpoConfig) -> Iterator[str]:
    if config.rollout_n is not None and not config.bspo:
        yield (
            f"spo.rollout_n={config.rollout_n} gives prompts several rollouts: say with spo.bspo=True that they are "
            "meant, or set spo.rollout_n=null."
        )
    if not config.reward.low < config.reward.high:
        yield (
            f"spo.reward.low={config.reward.low} is not below spo.reward.high={config.reward.high}; declare "
            "the range of your reward, e.g. low=-1 high=1 for math_dapo."
        )
    if config.initial.values is not None and config.initial.tracker is not None:
        yield (
            f"spo.initial.values={config.initial.values!r} and spo.initial.tracker={config.initial.tracker!r} both say "
            "where a prompt's value begins; set one of them to null."
        )
    if config.advantage.baseline == "initial" and config.initial.values is None and config.initial.tracker is None:
        yield (
            "spo.advantage.baseline=initial subtracts the value that each prompt had before training, and none is "
            "given: set spo.initial.values to a file of offline values, or spo.advantage.baseline=value or none."
        )
    if not retentions_in_order(config.forgetting.rho_min, config.forgetting.rho_max):
        yield (
            f"spo.forgetting.rho_min={config.forgetting.rho_min} is above "
            f"spo.forgetting.rho_max={config.forgetting.rho_max}; swap or narrow them."
        )
    if config.sampling.quota is not None and not config.sampling.quota:
        yield "spo.sampling.quota={} names no data source; name each with its share of a batch, or set it to null."
    yield from _of_other_modes(config)
    yield from _read_by_nobody(config)


def retentions_in_order(rho_min: float, rho_max: float) -> bool:
    """Whether these bounds of the retention leave room for one."""
    return rho_min <= rho_max


def fault(key: str, given: object) -> str | None:
    """What is wrong with a setting that a program passes, None where nothing is.

    The range is that of the settings' tree; unlike there, text is no number, and True and 3.0 are no whole numbers.

    Args:
        key: dotted name without ``spo.``, e.g. ``sampling.gamma``.
        given: its value.
    """
    try:
        _checker(key).validate_python(given, strict=True)
        json.dumps(given)
    except ValidationError as error:
        return str(error.errors()[0]["msg"])
    except TypeError:  # an array that can be read as a number
        return "Input should be a plain value, not an array"
    return None


@functools.cache
def _checker(key: str) -> TypeAdapter[Any]:
    *sections, name = key.split(".")
    owner: type = SpoConfig
    for section in sections:
        owner = get_type_hints(owner)[section]
    return TypeAdapter(get_type_hints(owner, include_extras=True)[name], config=ConfigDict(allow_inf_nan=False))


def _of_other_modes(config: SpoConfig) -> Iterator[str]:
    """Settings that the forgetting mode would leave without effect."""
    mode = config.forgetting.mode
    if config.drift.measure_both and mode != "kl":
        yield (
            f"spo.drift.measure_both=True needs stored responses, which spo.forgetting.mode={mode} does not keep; set "
            "spo.forgetting.mode=kl."
        )
    if config.drift.max_prompts is not None and mode != "kl":
        yield (
            f"spo.drift.max_prompts={config.drift.max_prompts} bounds the forward over stored responses, which "
            f"spo.forgetting.mode={mode} does not run; set it to null, or spo.forgetting.mode=kl."
        )
    if config.forgetting.floor and mode != "version":
        yield (
            f"spo.forgetting.floor={config.forgetting.floor} is the mass that evidence in event time keeps; with "
            f"spo.forgetting.mode={mode} it would do nothing: set it to 0, or spo.forgetting.mode=version."
        )
    if config.forgetting.drift_scale != 1.0 and mode != "drift":
        yield (
            f"spo.forgetting.drift_scale={config.forgetting.drift_scale} scales the policy's summed movement; with "
            f"spo.forgetting.mode={mode} it would do nothing: set it to 1.0, or spo.forgetting.mode=drift."
        )


def _read_by_nobody(config: SpoConfig) -> Iterator[str]:
    """Settings of a read-out that would have no effect."""
    window, default = config.value.window, ValueConfig().window
    if config.value.readout == "raw":
        if window != default:
            yield (
                f"spo.value.window={window} is the number of outcomes that the calibrated read-out is fitted on; with "
                f"spo.value.readout=raw it would do nothing: set it to {default}, or spo.value.readout=calibrated."
            )
        if config.value.features:
            yield (
                f"spo.value.features={config.value.features} are for the calibrated read-out; with "
                "spo.value.readout=raw they would do nothing: set them to null, or spo.value.readout=calibrated."
            )
        return
    features = config.value.features or []
    if repeated := sorted({name for name in features if features.count(name) > 1}):
        yield f"spo.value.features has {', '.join(repeated)} more than once: leave one of each."
    baseline, mode = config.advantage.baseline, config.sampling.mode
    if baseline != "value" and mode == "uniform" and config.rollout_n is None:
        yield (
            f"spo.value.readout=calibrated changes values, which neither spo.advantage.baseline={baseline} nor "
            "spo.sampling.mode=uniform reads, so it would do nothing: set spo.value.readout=raw, "
            "spo.advantage.baseline=value or spo.sampling.mode=prioritized."
        )


def read(section: Mapping[str, Any] | None) -> tuple[SpoConfig, list[str], set[str]]:
    """Build the settings from plain mappings (the resolved ``spo`` section), as far as they are right.

    Returns:
        The settings, with the default for each that was refused; every problem as a sentence that names the fix; and
        the keys of the refused settings.
    """
    plain = copy.deepcopy(dict(section or {}))
    problems: list[str] = []
    refused: set[str] = set()
    while True:
        try:
            config: SpoConfig = TypeAdapter(SpoConfig).validate_python(plain)
            break
        except ValidationError as error:
            # Once more without what was refused, so that the relations of the others are checked in the same go.
            found = error.errors()
            problems += [_describe(item) for item in found]
            refused |= {_drop(plain, item["loc"]) for item in found if item["loc"]}
    return config, problems + [relation for relation in _ranges(config) if not mentions(relation, refused)], refused


def _drop(plain: dict[str, Any], place: Sequence[Any]) -> str:
    """Take out the setting in which pydantic refused something; returns its key."""
    section: Any = plain
    owner: Any = SpoConfig
    depth = 0
    while depth + 1 < len(place) and isinstance(inside := section.get(place[depth]), dict):
        below = get_type_hints(owner).get(place[depth])
        if not is_dataclass(below):  # a setting that is a mapping
            break
        section, owner, depth = inside, below, depth + 1
    section.pop(place[depth], None)  # a setting may have several faults
    return "spo." + ".".join(map(str, place[: depth + 1]))


def mentions(sentence: str, keys: Iterable[str]) -> bool:
    """Whether a sentence names one of these keys, or a key below one."""
    return any(re.search(rf"(?<![\w.]){re.escape(key)}(?!\w)", sentence) for key in keys)


def no_count(key: str, value: object) -> str | None:
    """What is wrong with a key that has to hold a whole number of at least 1, None where it does.

    Args:
        key: a key of verl's configuration, e.g. ``data.train_batch_size``.
        value: its value, None where there is none; 4.0 counts as 4.
    """
    if value is None:
        return f"{key} is not set: set {key} to a whole number of at least 1."
    whole = isinstance(value, int | float) and not isinstance(value, bool) and value % 1 == 0  # not for inf and nan
    if whole and value >= 1:  # type: ignore[operator]
        return None
    return f"{key}={value}: it has to be a whole number of at least 1; set {key} to one."


def parse(section: Mapping[str, Any] | None) -> tuple[SpoConfig | None, list[str]]:
    """Like :func:`read`, with None for the settings where one of them was refused."""
    config, problems, refused = read(section)
    return (None if refused else config), problems


def refuse(problems: list[str], what: str = "the configuration of SPO") -> None:
    """Raise one :class:`SpoConfigError` that lists all problems in ``what``; do nothing where there is no problem."""
    if problems:
        lines = "\n".join(f"  {number}. {problem}" for number, problem in enumerate(problems, 1))
        noun = "problem" if len(problems) == 1 else "problems"
        raise SpoConfigError(f"{len(problems)} {noun} in {what}:\n{lines}")
