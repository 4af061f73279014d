"""Removing blobs whose bytes belong to one row alone."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Protocol

from heimdallr_ray.errors import StorageFailed


class Locates(Protocol):
    """Where a store keeps its blobs."""

    def locate(self, sha256: str) -> Path:
        """Where the blob is, or would be."""
        ...


def remove_blobs(store: Locates, digests: Iterable[str]) -> int:
    """The blobs are gone; returns how many were there.

    For bytes that nothing else can hold, because what they belong to stands in them: a blob whose bytes somebody else
    may put at the same moment must never be removed. A power cut may bring one back, named by nothing.

    Raises:
        BadIdentifier: not a digest.
        StorageFailed: the operating system refused; those before it are gone.
    """
    removed = 0
    for digest in digests:
        try:
            store.locate(digest).unlink()
        except FileNotFoundError:
            continue
        except OSError as error:
            raise StorageFailed(f"a blob could not be removed: {error.strerror}") from error
        removed += 1
    return removed
