"""The tracker's part of verl's checkpoints: ``global_step_N/spo/``, complete before verl writes its marker.

Order of a save: the tracker's actor copies its state and starts writing; verl saves the actor (the long part,
meanwhile the tracker's file is written); verl asks the dataloader for its state, and there the tracker's write is
awaited; verl writes ``latest_checkpointed_iteration.txt``. A marker therefore never names a checkpoint without its
tracker, and a failed write stops the run before the marker moves.
"""

from __future__ import annotations

import logging
import os
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from verl.utils.checkpoint.checkpoint_manager import get_checkpoint_tracker_filename

from spo_verl.data.identity import IDENTITY_VERSION
from spo_verl.errors import SpoCheckpointDamagedError, SpoCheckpointError, SpoError
from spo_verl.tracker.checkpoint.folder import is_folder, remove
from spo_verl.tracker.features import PromptFeatures
from spo_verl.tracker.quota import PromptSources
from spo_verl.tracker.service import TrackerClient
from spo_verl.tracker.settings import TrackerSettings
from spo_verl.training.recording import Recorder

logger = logging.getLogger(__name__)

FOLDER = "spo"
PROBE_BYTES = 1 << 16
_SHARD = re.compile(r"model_world_size_(\d+)_rank_\d+\.pt")


class CheckpointFollower:
    """Saves, loads and prunes the tracker next to verl's checkpoints.

    Holds which folders this process saved, in order, as verl's checkpoint manager does: folders of an earlier
    process are never pruned.
    """

    def __init__(
        self,
        trainer_config: Any,
        tracker: TrackerClient,
        key_P: np.ndarray,
        settings: TrackerSettings,
        *,
        initial_evidence: tuple[np.ndarray, np.ndarray] | None = None,
        sources: PromptSources | None = None,
        features: PromptFeatures | None = None,
        recorder: Recorder | None = None,
    ) -> None:
        self._config = trainer_config
        self._tracker = tracker
        self._key_P = key_P
        self._settings = settings
        self._initial_evidence = initial_evidence
        self._of_prompts = {"sources": sources, "features": features}
        self._recorder = recorder
        self._foreign = False
        self._saving: Path | None = None
        self._saved: list[Path] = []

    # ------------------------------------------------------------------ save

    @property
    def root(self) -> Path:
        """``trainer.default_local_dir``, absolute: the tracker's actor has a working directory of its own."""
        return Path(os.path.abspath(self._config.default_local_dir))

    def begin_save(self, step: int) -> None:
        """Take the snapshot, and cut the record; both are written while verl saves the actor."""
        folder = self.root / f"global_step_{step}" / FOLDER
        # Without the digest: it reads the whole state, and the writer works it out anyway while training continues.
        self._tracker.begin_save(folder, step, extra={"identity_version": IDENTITY_VERSION}, digest=False)
        self._saving = folder
        if self._recorder is not None:
            self._recorder.cut(step)

    @contextmanager
    def explained(self, step: int) -> Iterator[None]:
        """Around verl's part of a save: a disk that is full or read-only is named, which torch's own error does not do.

        Raises:
            SpoCheckpointError: something was raised, and the folder cannot be written to.
        """
        try:
            yield
        except SpoError:
            raise
        except (OSError, RuntimeError) as error:
            fault = _fault(self.root)
            if fault is None:
                raise
            raise SpoCheckpointError(
                f"verl could not save step {step} in {self.root}: {fault}. Make room or correct the permissions, then "
                "run the same command again; it continues from the step that latest_checkpointed_iteration.txt names."
            ) from error

    def finish_write(self) -> None:
        """Wait until the tracker's folder and the record are complete; does nothing when none is being written.

        Raises:
            SpoCheckpointError: the folder could not be written.
        """
        if self._saving is not None:
            report = self._tracker.end_save()
            logger.info("spo: saved %s tracker_digest=%s bytes=%d", self._saving, report.digest, report.nbytes)
            self._saved.append(self._saving)
            self._saving = None
            if self._recorder is not None:
                self._recorder.flush()

    def end_save(self, step: int) -> None:
        """After verl's marker: prune as verl does with the actor's folders."""
        if self._saving is not None:
            raise SpoCheckpointError(
                f"verl finished the checkpoint of step {step} without asking the dataloader for its state, so its "
                "marker may name a checkpoint whose tracker is incomplete; this verl version is not supported."
            )
        keep = self._config.get("max_actor_ckpt_to_keep", None)
        if self._config.get("remove_previous_ckpt_in_save", False):
            keep = 1
        if isinstance(keep, int) and keep > 0:
            for old in self._saved[:-keep]:
                remove(old)
            self._saved = self._saved[-keep:]

    # ------------------------------------------------------------------ load

    def note_foreign_state(self, state: Any) -> None:
        """The checkpoint's dataloader state is verl's own: another estimator made the checkpoint."""
        self._foreign = True

    def require_marked_folder(self) -> None:
        """Refuse to start from scratch where a marker names a checkpoint that is not there.

        verl itself would start from scratch without an error, and the next save would overwrite the marker.

        Raises:
            SpoCheckpointError: the marker is unreadable, or its folder is missing.
        """
        if self._config.resume_mode != "auto":
            return
        marker = Path(get_checkpoint_tracker_filename(str(self.root)))
        try:
            text = marker.read_text(encoding="utf-8", errors="replace").strip()
        except FileNotFoundError:
            return
        except OSError as error:
            raise SpoCheckpointError(
                f"{marker} cannot be read ({error.strerror}); make it a readable file that holds a step, or set "
                "trainer.resume_mode=disable to start from scratch."
            ) from error
        if not (text.isascii() and text.isdigit()):
            raise SpoCheckpointError(
                f"{marker} holds {text[:80]!a} instead of a step (a crash while verl wrote it?); write the step of the "
                "newest complete global_step_* folder into it, or start from scratch: trainer.resume_mode=disable."
            )
        folder = self.root / f"global_step_{text}"
        if not _there(folder):
            raise SpoCheckpointError(
                f"{marker} names step {text}, but {folder} is missing; restore that folder, write an existing step "
                "into the marker, or set trainer.resume_mode=disable to start from scratch."
            )

    def require_same_ranks(self) -> None:
        """Refuse to continue with another number of training processes than FSDP saved its shards with.

        verl itself would end in every worker with a file that is not found. Megatron's checkpoints have no such files.

        Raises:
            SpoCheckpointError: names both numbers and the ways out.
        """
        folder = self._resumed_folder()
        if folder is None:
            return
        saved = sorted({int(found[1]) for file in _files(folder / "actor") if (found := _SHARD.fullmatch(file))})
        ranks = int(self._config.nnodes) * int(self._config.n_gpus_per_node)
        if not saved or ranks in saved:
            return
        weights = f"{folder}_merged"
        raise SpoCheckpointError(
            f"{folder / 'actor'} was saved by {saved[-1]} training processes, and this run has trainer.nnodes * "
            f"trainer.n_gpus_per_node = {ranks}: verl loads FSDP's checkpoints with the same number only. Set it to "
            f"{saved[-1]}; or begin a new run, without the optimizer's state: merge the weights with `python -m "
            f"verl.model_merger merge --backend fsdp --local_dir {folder / 'actor'} --target_dir {weights}`, and set "
            f"actor_rollout_ref.model.path={weights} ++spo.initial.tracker={folder / FOLDER} and another "
            "trainer.default_local_dir."
        )

    def _resumed_folder(self) -> Path | None:
        """The folder that verl is about to load; None where it starts from scratch."""
        if self._config.resume_mode == "resume_path":
            return Path(os.path.abspath(self._config.resume_from_path))
        marker = Path(get_checkpoint_tracker_filename(str(self.root)))
        if self._config.resume_mode != "auto" or not marker.exists():
            return None
        return self.root / f"global_step_{marker.read_text(encoding='utf-8').strip()}"

    def load(self, step: int) -> None:
        """Make the tracker: from the checkpoint that verl has just loaded, or from its initial values.

        A checkpoint made by another estimator has no tracker: evidence then starts from the initial values, which
        is said loudly. One that SPO made must have it.

        Args:
            step: verl's ``global_steps`` after loading; 0 when training starts from scratch. It is the policy version
                that the next step samples with, which new evidence has in event time.

        Raises:
            SpoCheckpointError: and its children, see :mod:`spo_verl.tracker.checkpoint`.
        """
        if step == 0:
            self.create(self._initial_evidence)
            return
        folder = self._checkpoint_folder(step) / FOLDER
        if not _there(folder):
            if not self._foreign:
                raise SpoCheckpointDamagedError(
                    f"{folder} is missing, although {folder.parent} was not made by another estimator (that would "
                    "show in its data.pt); restore the folder, or resume from another step with "
                    "trainer.resume_mode=resume_path trainer.resume_from_path=<...>/global_step_<N>."
                )
            logger.warning(
                "spo: %s was saved by another estimator: weights and optimizer continue at step %d, the tracker "
                "starts from its initial values.",
                folder.parent,
                step,
            )
            self.create(self._initial_evidence, version=step)
            return
        report = self._tracker.load(
            folder, self._key_P, self._settings, **self._initial(self._initial_evidence), version=step
        )
        if report.step != step:
            raise SpoCheckpointDamagedError(
                f"{folder} holds the tracker of step {report.step}, not of step {step}: a folder was moved or copied "
                "over another; restore the one that belongs to this checkpoint."
            )
        logger.info("spo: loaded step=%d tracker_digest=%s", step, report.digest)
        logger.info("spo: %s", report)

    def create(self, evidence: tuple[np.ndarray, np.ndarray] | None, *, version: int = 0) -> None:
        """Make the tracker from initial values ``(alpha_P, beta_P)``, or from nothing, instead of a checkpoint."""
        self._tracker.create(self._key_P, self._settings, **self._initial(evidence), version=version)

    def _initial(self, evidence: tuple[np.ndarray, np.ndarray] | None) -> dict[str, Any]:
        alpha_P, beta_P = evidence or (None, None)
        return {"alpha_P": alpha_P, "beta_P": beta_P, **self._of_prompts}

    def _checkpoint_folder(self, step: int) -> Path:
        if self._config.resume_mode == "resume_path":
            return Path(os.path.abspath(self._config.resume_from_path))
        return self.root / f"global_step_{step}"


def _files(folder: Path) -> list[str]:
    """Names in a folder; none where it is not there or may not be read, which verl then says."""
    try:
        return os.listdir(folder)
    except OSError:
        return []


def _fault(folder: Path) -> str | None:
    """Why a file cannot be written in a folder; None where it can."""
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(bytes(PROBE_BYTES))
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        return error.strerror or str(error)
    return None


def _there(folder: Path) -> bool:
    """Whether there is such a folder; raises :class:`SpoCheckpointError` where one may not look."""
    try:
        return is_folder(folder)
    except OSError as error:
        raise SpoCheckpointError(
            f"{folder} cannot be looked at ({error.strerror}); correct the permissions of the folders above it."
        ) from error
