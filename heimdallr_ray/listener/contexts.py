"""Which presentation contexts are accepted, by both backends alike (PS3.8 annex B, PS3.4 annex B)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, cast

from pynetdicom import sop_class
from pynetdicom._globals import ALL_TRANSFER_SYNTAXES

from heimdallr_ray.listener.action import PUSH_MODEL as STORAGE_COMMITMENT_PUSH
from heimdallr_ray.listener.action import TRANSFER_SYNTAXES as COMMITMENT_SYNTAXES

VERIFICATION = "1.2.840.10008.1.1"
STANDARD_ROOT = "1.2.840.10008."
STORAGE_ROOT = "1.2.840.10008.5.1.4.1.1."
DEFLATED = frozenset({"1.2.840.10008.1.2.1.99", "1.2.840.10008.1.2.4.95", "1.2.840.10008.1.2.4.205"})
"""Data sets that are deflated as a whole (PS3.5 annex A): inflated nowhere in the intake, and taken only from a peer
that offers nothing else. Deflated Image Frame Compression (1.2.840.10008.1.2.8.1) deflates single frames."""
TRANSFER_SYNTAXES: tuple[str, ...] = tuple(str(uid) for uid in ALL_TRANSFER_SYNTAXES)
"""Every one of them is stored byte for byte."""
VERIFICATION_SYNTAXES: tuple[str, ...] = ("1.2.840.10008.1.2", "1.2.840.10008.1.2.1", "1.2.840.10008.1.2.2")
_STORAGE = frozenset(str(uid) for uid in cast("dict[str, Any]", cast(Any, sop_class)._STORAGE_CLASSES).values())


def is_storage(abstract_syntax: str) -> bool:
    """True for storage classes: those of the standard, known here or not, and private ones."""
    if abstract_syntax in _STORAGE or abstract_syntax.startswith(STORAGE_ROOT):
        return True
    return not abstract_syntax.startswith(STANDARD_ROOT)


def transfer_syntax_for(abstract_syntax: str, offered: Iterable[str], *, commitment: bool = True) -> str | None:
    """The transfer syntax to accept, the first that the peer offers; "" where none is known, None where the class is.

    The peer's order is kept, so that it sends what it has without converting it.
    """
    if abstract_syntax == VERIFICATION:
        known = VERIFICATION_SYNTAXES
    elif abstract_syntax == STORAGE_COMMITMENT_PUSH and commitment:
        known = COMMITMENT_SYNTAXES
    elif is_storage(abstract_syntax):
        known = TRANSFER_SYNTAXES
    else:
        return None
    candidates = [syntax for syntax in offered if syntax in known]
    plain = [syntax for syntax in candidates if syntax not in DEFLATED]
    return (plain or candidates or [""])[0]


def accept_contexts(proposed: Iterable[tuple[int, str, tuple[str, ...]]], *, commitment: bool) -> Iterator[str | None]:
    """`transfer_syntax_for` each of the proposed contexts (id, abstract syntax, transfer syntaxes).

    `commitment`: whether storage commitment is offered.
    """
    for _, abstract_syntax, offered in proposed:
        yield transfer_syntax_for(abstract_syntax, offered, commitment=commitment)
