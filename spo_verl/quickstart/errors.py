"""What the quickstart raises beside :class:`~spo_verl.errors.SpoError`."""

from __future__ import annotations


class QuickstartError(Exception):
    """The quickstart could not go on; the message says why, and where to look."""
