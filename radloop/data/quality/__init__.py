"""Validation: bad data stops at the door, with file, row, value and remedy."""

from radloop.data.quality.report import ValidationReport
from radloop.data.quality.validate import validate

__all__ = ["ValidationReport", "validate"]
