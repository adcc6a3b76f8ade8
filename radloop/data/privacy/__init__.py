"""De-identification: what names a patient is removed or replaced before anything is stored.

What was removed is counted by kind and never printed, logged or put into an error message.
"""

from radloop.data.privacy.burnt_in import has_burnt_in_text
from radloop.data.privacy.codes import is_code
from radloop.data.privacy.dicom import clean_dicom, is_compressed
from radloop.data.privacy.known import KnownIds
from radloop.data.privacy.pseudonyms import Pseudonyms, load_key
from radloop.data.privacy.text import MARK, scrub

__all__ = [
    "MARK",
    "KnownIds",
    "Pseudonyms",
    "clean_dicom",
    "has_burnt_in_text",
    "is_code",
    "is_compressed",
    "load_key",
    "scrub",
]
