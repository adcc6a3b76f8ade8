"""From radiology images, questions, reports and health records to a served model, and around again."""

import logging

__version__ = "0.1.0"

# It says on import, which PEFT does whatever the precision, that it lacks a kernel for 4-bit weights.
logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
