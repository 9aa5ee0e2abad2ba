"""What preparing data raises."""

from spo_verl.errors import SpoError


class SpoDataError(SpoError, ValueError):
    """Problems cannot be read, a row is not what its source promises, or a file cannot be written; none was written."""


class RowError(SpoDataError):
    """One row is wrong; the message begins with its number, counted from 0, and the field."""


def row_error(row: int, field: str, what: str) -> RowError:
    """The error of one field of one row."""
    return RowError(f"row {row}, field {field}: {what}")
