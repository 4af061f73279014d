"""A flood of refusals: one word a minute about each, no count lost, memory and words bounded."""

from __future__ import annotations

import random

from heimdallr_ray.security.floodgate import FloodGate


def test_the_first_is_told_and_the_rest_counted() -> None:
    gate = FloodGate(window_s=60)
    assert gate.admit("192.0.2.1", "calling_ae", 0) == 0
    assert [gate.admit("192.0.2.1", "calling_ae", second) for second in range(1, 60)] == [None] * 59
    assert gate.admit("192.0.2.1", "calling_ae", 60) == 59
    assert gate.admit("192.0.2.1", "calling_ae", 61) is None


def test_another_address_or_reason_is_told_at_once() -> None:
    gate = FloodGate()
    assert gate.admit("192.0.2.1", "calling_ae", 0) == 0
    assert gate.admit("192.0.2.2", "calling_ae", 0) == 0
    assert gate.admit("192.0.2.1", "called_ae", 0) == 0


def test_what_was_kept_back_is_told_when_the_flood_is_over() -> None:
    gate = FloodGate(window_s=60)
    for second in range(10):
        gate.admit("192.0.2.1", "calling_ae", second)
    assert gate.due(30) == []
    assert gate.due(60) == [("192.0.2.1", "calling_ae", 9)]
    assert gate.due(61) == []
    assert gate.due(200) == []
    assert gate.admit("192.0.2.1", "calling_ae", 201) == 0


def test_any_number_of_addresses_costs_bounded_words_and_memory_and_no_count() -> None:
    gate = FloodGate(window_s=60, max_keys=50, max_per_window=20)
    draw, now, told, words = random.Random(1), 0.0, 0, 0
    for _ in range(20_000):
        now += 0.05
        before = gate.admit(f"192.0.2.{draw.randrange(200)}", draw.choice(("a", "b")), now)
        if before is not None:
            told, words = told + 1 + before, words + 1
        for _, _, count in gate.due(now) if draw.random() < 0.01 else ():
            told, words = told + count, words + 1
    assert len(gate._seen) <= 50
    assert words <= (now / 60 + 2) * 20
    for _ in range(100):
        now += 61
        told += sum(count for _, _, count in gate.due(now))
    assert told == 20_000
