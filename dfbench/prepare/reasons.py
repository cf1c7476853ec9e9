"""Why a row of the annotations is left out of the clean files."""

from enum import Enum


class Reason(str, Enum):
    """Why a row is left out of the clean annotations."""

    BAD_ROW = "unreadable row"
    JUNK = "junk"
    REPEATED = "repeated row"
    CONTRADICTED = "label contradicts an earlier row"
    MISLABELLED = "label contradicts the catalogue"
    IN_BOTH = "training row that is also a test row"
    UNSAFE = "unsafe path"
    ABSENT = "absent from its archive"
    NO_ARCHIVE = "no archive"
    BROKEN = "broken archive"
    REFUSED = "refused archive member"
    NOT_EXTRACTED = "not extracted"
    UNWRITABLE = "cannot be written"
    AMBIGUOUS = "ambiguous"
    UNDECODABLE = "undecodable"

    __str__ = str.__str__


Fault = tuple[Reason, str]
"""What is wrong with an image or a row: why it is left out, and the details."""
