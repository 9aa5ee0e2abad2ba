"""What :mod:`spo_verl.small.model` holds, under its former name."""

from spo_verl.small.model import *  # noqa: F403
