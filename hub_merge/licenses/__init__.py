"""What the licences of base and parents ask of a composite. Help, never legal advice."""

from hub_merge.licenses.terms import TERMS
from hub_merge.licenses.texts import prescribed_notice, recognise, terms_files
from hub_merge.licenses.verdict import Blocker, Licensed, LicenseVerdict, Obligation, SourceTerms, united, verdict_of

__all__ = [
    "TERMS",
    "Blocker",
    "LicenseVerdict",
    "Licensed",
    "Obligation",
    "SourceTerms",
    "prescribed_notice",
    "recognise",
    "terms_files",
    "united",
    "verdict_of",
]
