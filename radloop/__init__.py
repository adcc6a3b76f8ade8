"""From radiology images, questions, reports and health records to a served model, and around again."""

__version__ = "0.1.0"
