"""What the tracker's verbs return: plain, picklable records of arrays."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from spo_verl.tracker.responses import StoredResponses
from spo_verl.tracker.settings import Ending


@dataclass(frozen=True)
class Draw:
    """Drawn prompts: ``slot_B`` int64, in the order drawn or, with quotas, in random order.

    ``share_B``, float64: the probability of being the first (and only) prompt of a batch of one. That is the share of
    the total weight, or with quotas the share of the weight of its data source times the source's share of a batch;
    in either case the weight of the prompts that were available, without those in flight.
    """

    slot_B: NDArray[np.int64]
    share_B: NDArray[np.float64]


@dataclass(frozen=True)
class Frozen:
    """What was noted at dispatch, one entry per uid: it holds however late the rollout returns.

    ``slot_B`` int64, ``value_B`` float64 in [0, 1] (the baseline), ``n_eff_B`` float64, ``version_B`` int64
    (policy version of the dispatch).
    """

    slot_B: NDArray[np.int64]
    value_B: NDArray[np.float64]
    n_eff_B: NDArray[np.float64]
    version_B: NDArray[np.int64]


@dataclass(frozen=True)
class Recall:
    """The frozen records of the uids asked for, and the stored responses of those whose prompt has one."""

    frozen: Frozen
    stored: StoredResponses


@dataclass(frozen=True)
class Late:
    """Rollouts that end for one reason, and the outcomes that they had.

    Attributes:
        kind: why they end, see ``Tracker.settle``.
        uids: (B,) rollout of each outcome; may repeat.
        session_B, reward_B: (B,) as for ``Tracker.observe``.
        divergence_B: (B,) the same; None where none was measured.
        ended: rollouts that end; None for those in ``uids``. Rollouts without an outcome are only here.
    """

    kind: Ending
    uids: Sequence[str] = ()
    session_B: ArrayLike = ()
    reward_B: ArrayLike = ()
    divergence_B: ArrayLike | None = None
    ended: Sequence[str] | None = None

    @property
    def over(self) -> Sequence[str]:
        """The rollouts that end."""
        return self.uids if self.ended is None else self.ended


@dataclass(frozen=True)
class ObserveReport:
    """What observing did, one entry per prompt and policy version with a new outcome (all ``(B,)``).

    Attributes:
        slot_B: prompt slots, int64.
        version_B: policy versions of the outcomes, int64.
        count_B: new outcomes, int64.
        rho_B: factor that was applied to the evidence; 1 where this version had been discounted already, or under
            ``kl`` and ``drift`` another version of the same request. In event time rho to the power of the versions
            since the prompt's newest event, 1 for outcomes that are no newer.
        divergence_B: the divergence that ``rho_B`` follows from; 0 without a stored response, without a discount,
            under ``constant`` and in event time. Under ``drift`` the scaled movement instead.
        n_eff_B: effective sample size before, in event time as read at the outcomes' version.
        discounted_B: whether the evidence was discounted, bool.
        first_visit_B: whether the prompt had never been observed, bool.
        new: new outcomes.
        duplicate: outcomes that had been observed before and changed nothing.
    """

    slot_B: NDArray[np.int64]
    version_B: NDArray[np.int64]
    count_B: NDArray[np.int64]
    rho_B: NDArray[np.float64]
    divergence_B: NDArray[np.float64]
    n_eff_B: NDArray[np.float64]
    discounted_B: NDArray[np.bool_]
    first_visit_B: NDArray[np.bool_]
    new: int
    duplicate: int

    @property
    def first_visits(self) -> int:
        """Prompts that were observed for the first time."""
        return int(self.first_visit_B.sum())


@dataclass(frozen=True)
class StepReport:
    """What a finished step did: the observation, and the tracker's metrics after it.

    ``untrained``: how many of the new outcomes came from rollouts that were not trained on.
    """

    observe: ObserveReport
    metrics: dict[str, float]
    untrained: int = 0


@dataclass(frozen=True)
class WriteReport:
    """A checkpoint that was written: digest of its state, size, and seconds of writing."""

    folder: str
    digest: str
    nbytes: int
    seconds: float


@dataclass(frozen=True)
class LoadReport:
    """How a checkpoint met the dataset.

    Attributes:
        step: training step of the checkpoint.
        digest: digest of the state as saved. The tracker's own differs as soon as the dataset, the seed, the
            forgetting mode or what is stored of a response does.
        matched: prompts of the dataset that the checkpoint knew, including ``returned``.
        new: prompts of the dataset that it did not know.
        vanished: prompts that were in the dataset when it was saved and no longer are.
        returned: prompts that it had kept aside and that are in the dataset again.
        aside: prompts that are kept aside now.
        settings_changed: setting -> (saved, now); the present ones hold.
        responses_dropped: stored responses that lack a log-prob column which the settings now ask for.
        extra: what the caller had saved along.
    """

    step: int
    digest: str
    matched: int
    new: int
    vanished: int
    returned: int
    aside: int
    settings_changed: dict[str, tuple[Any, Any]]
    responses_dropped: int
    extra: dict[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        text = (
            f"tracker of step {self.step}: {self.matched} prompts of the dataset known ({self.returned} "
            f"returned), {self.new} new, {self.vanished} vanished ({self.aside} kept aside)"
        )
        for name, (saved, now) in self.settings_changed.items():
            text += f"; {name} was {saved!r}, is now {now!r}"
        if self.responses_dropped:
            text += f"; {self.responses_dropped} stored responses dropped, as they lack a log-prob column"
        return text
