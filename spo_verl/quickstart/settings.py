"""What :mod:`spo_verl.small.launches` holds, under its former name."""

from spo_verl.small.launches import *  # noqa: F403
