"""The same data set in another file: told by the bytes behind group 0002, outside any transaction.

A spooled file's group 0002 names the UIDs of a C-STORE request, or those of the file meta information of an upload.
Where they differ, so do the digests of two files with the same data set. The blob of the second stays in the store and
no row names it: whoever took it away might take it from another process that keeps the same file at that moment.
"""

from __future__ import annotations

import logging
import os
from typing import BinaryIO

from heimdallr_ray.errors import HeimdallrError
from heimdallr_ray.listener import part10
from heimdallr_ray.storage.blobs import CHUNK, BlobStore

logger = logging.getLogger(__name__)

MAX_ROUNDS = 3
"""Transactions that are begun again to compare; what is found uncompared after so many counts as different."""


class Uncompared(Exception):
    """Something was asked that only the files tell: compare them, then ask again."""


class DataSets:
    """What is known of blobs that may hold the same data set; each two are read once, when nobody waits for a lock.

    A transaction asks `same`, ends with `require_compared`, and is done again after `compare`.
    """

    def __init__(self, blobs: BlobStore) -> None:
        """Nothing is known yet."""
        self._blobs = blobs
        self._known: dict[tuple[str, str], bool] = {}
        self._asked: set[tuple[str, str]] = set()
        self._rounds = 0

    def same(self, one: str, other: str) -> bool:
        """True where the blobs of these digests are known to hold the same data set."""
        pair = (min(one, other), max(one, other))
        if pair not in self._known and self._rounds < MAX_ROUNDS:
            self._asked.add(pair)
        return self._known.get(pair, False)

    def require_compared(self) -> None:
        """Nothing was asked that is not known.

        Raises:
            Uncompared: something was.
        """
        if self._asked:
            raise Uncompared

    def compare(self) -> None:
        """All that was asked is known. What cannot be read is not the same: both are kept."""
        self._rounds += 1
        for one, other in sorted(self._asked):
            try:
                with self._blobs.open(one) as first, self._blobs.open(other) as second:
                    self._known[one, other] = same_data_set(first, second)
            except (HeimdallrError, OSError) as error:
                logger.warning("intake.not_compared", extra={"error": type(error).__name__})
                self._known[one, other] = False
        self._asked.clear()


def same_data_set(one: BinaryIO, other: BinaryIO) -> bool:
    """True where two spooled files have one transfer syntax and, behind group 0002, the same bytes; holds two chunks.

    Raises:
        NotDicom, TooLarge: one has no group 0002 that can be read.
        OSError: it cannot be read.
    """
    if _rewound(one) != _rewound(other):
        return False
    while chunk := one.read(CHUNK):
        if other.read(CHUNK) != chunk:
            return False
    return True


def _rewound(file: BinaryIO) -> tuple[str, int]:
    """Transfer syntax and length in bytes of the data set, at whose beginning the file stands now."""
    meta = part10.parse_meta(file.read(part10.HEAD_BYTES))
    length = file.seek(0, os.SEEK_END) - meta.dataset_offset
    file.seek(meta.dataset_offset)
    return meta.transfer_syntax_uid, length
