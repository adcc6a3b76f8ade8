"""Health records as text: what was known of a patient at the time of a question."""

from radloop.data.ehr.context import estimate_tokens
from radloop.data.ehr.record import Record, StudyImage

__all__ = ["Record", "StudyImage", "estimate_tokens"]
