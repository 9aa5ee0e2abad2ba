"""What the quickstart raises beside :class:`~spo_verl.errors.SpoError`."""

from __future__ import annotations


class QuickstartError(Exception):
    """The quickstart could not go on; the message says why, and where to look."""


class OutOfTime(QuickstartError):
    """The time of this call is over. Nothing is wrong: what there is is kept and shown, and the same call goes on."""
