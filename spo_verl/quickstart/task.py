"""What :mod:`spo_verl.small.task` holds, under its former name."""

from spo_verl.small.task import *  # noqa: F403
