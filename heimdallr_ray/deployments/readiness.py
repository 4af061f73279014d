"""What the deployments and the DICOM listener say of themselves: one word each, asked with bounds, kept for a moment.

Knows nothing of Ray: whoever wires it gives the questions.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor, wait

from heimdallr_ray.api.services import IDLE, READY
from heimdallr_ray.clock import Clock

STARTING = "starting"
UNHEALTHY = "unhealthy"
FAILED = "failed"
ABSENT = "absent"
SILENT = "no answer"

LISTENER = "DicomListener"
"""The part that is no deployment."""

FRESH_S = 2.0
ANSWER_S = 1.5
_BROKEN = {"UNHEALTHY": UNHEALTHY, "DEPLOY_FAILED": FAILED}

Question = Callable[[], Mapping[str, str]]
"""Asks about one or several parts: name to word. May block or raise; then its parts have given no answer."""


def word_of(status: str, replicas: Mapping[str, int], *, may_sleep: bool) -> str:
    """A deployment in one word.

    Args:
        status: Serve's status of it.
        replicas: Serve's replica states and how many replicas are in each.
        may_sleep: It may have no replica at all.
    """
    if status in _BROKEN:
        return _BROKEN[status]
    # A replica runs once its constructor has ended: the models are loaded and have run.
    if replicas.get("RUNNING", 0):
        return READY
    asleep = may_sleep and not sum(replicas.values())
    return IDLE if asleep else STARTING


class Components:
    """Name to word of every part. Safe for several threads; asks each question at most once per FRESH_S."""

    def __init__(
        self,
        questions: Mapping[tuple[str, ...], Question],
        clock: Clock,
        *,
        fresh_s: float = FRESH_S,
        answer_s: float = ANSWER_S,
    ) -> None:
        """`questions`: the names that a question answers for, to the question."""
        self._questions = questions
        self._clock = clock
        self._fresh_s = fresh_s
        self._answer_s = answer_s
        self._lock = threading.Lock()
        self._asked: dict[tuple[str, ...], Future[Mapping[str, str]]] = {}
        self._known: dict[str, str] = {}
        self._known_at: float | None = None
        self._threads = ThreadPoolExecutor(max_workers=max(1, len(questions)), thread_name_prefix="readiness")

    def __call__(self) -> Mapping[str, str]:
        """The words. Takes `answer_s` at most for those who ask anew; a part whose question does not end is silent."""
        with self._lock:
            now = self._clock.monotonic()
            if self._known_at is None or now - self._known_at >= self._fresh_s:
                self._known = self._ask()
                self._known_at = self._clock.monotonic()
            return dict(self._known)

    def _ask(self) -> dict[str, str]:
        for names, question in self._questions.items():
            # A question that has not ended yet is not asked a second time: a part that hangs costs one thread.
            if names not in self._asked:
                self._asked[names] = self._threads.submit(question)
        wait(self._asked.values(), timeout=self._answer_s)
        words: dict[str, str] = {}
        for names in self._questions:
            answer: Mapping[str, str] = {}
            if self._asked[names].done():
                asked = self._asked.pop(names)
                answer = asked.result() if asked.exception() is None else {}
            for name in names:
                # Two questions about one part: it is well only where both say so.
                word = answer.get(name, SILENT)
                if words.get(name, READY) == READY:
                    words[name] = word
        return words
