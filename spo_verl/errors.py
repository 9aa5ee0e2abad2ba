"""The exceptions of spo_verl: one tree, every class also a standard type, all picklable across Ray.

A message says what was wrong, where, and how to fix it. Constructors take that one message, which keeps
``pickle.loads(pickle.dumps(error))`` exact when Ray carries an error from an actor to the driver.
"""


class SpoError(Exception):
    """Base class of every error that spo_verl raises on purpose."""


class SpoArgumentError(SpoError, ValueError):
    """An argument of a function of :mod:`spo_verl.core` is outside the range that its docstring states."""


class SpoConfigError(SpoError, ValueError):
    """The configuration is wrong or contradicts itself; the message lists every problem at once."""


class SpoVersionError(SpoError, ImportError):
    """The installed verl does not have the names that the plugin builds on."""


class SpoPlottingError(SpoError, ImportError):
    """A picture was asked for, and matplotlib is not installed."""


class SpoRewardError(SpoError, ValueError):
    """A reward is missing, not a number, or outside the declared range."""


class SpoStateError(SpoError, RuntimeError):
    """The tracker was asked for something that its state does not allow (unknown uid, too many prompts...)."""


class SpoValuesError(SpoError, ValueError):
    """Offline values cannot be read, matched with the dataset, or merged; nothing was written."""


class SpoServiceError(SpoError, ConnectionError):
    """The tracker's actor is gone or did not answer."""


class SpoRolloutError(SpoError, RuntimeError):
    """The rollout engine, or what else rollouts and training depend on, is gone: they fail, or never end."""


class SpoCheckpointError(SpoError, OSError):
    """A tracker checkpoint cannot be used; nothing was changed on disk."""


class SpoCheckpointDamagedError(SpoCheckpointError):
    """A file is missing, truncated, or does not match its checksum."""


class SpoCheckpointVersionError(SpoCheckpointError):
    """The checkpoint was written by a newer format than this version reads."""


class SpoDatasetMismatchError(SpoCheckpointError, LookupError):
    """The checkpoint and the dataset have no prompt in common."""


class SpoRecordError(SpoError, OSError):
    """The record of a run is missing, damaged or cannot be written; training does not depend on it."""


class SpoRecordVersionError(SpoRecordError):
    """The record was written by a newer format than this version reads."""
