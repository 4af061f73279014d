"""Who of several associations computes, and what the listener has not heard of yet."""

from __future__ import annotations

import threading
import time

import pytest

from heimdallr_ray.listener.wire.turn import LONGEST_S, Turn, TurnStuck, Untold

HANG_S = 20.0


def test_one_at_a_time_and_everybody_while_somebody_waits() -> None:
    turn = Turn()
    inside: list[int] = []
    most = 0

    def work(number: int) -> None:
        nonlocal most
        for _ in range(50):
            with turn:
                inside.append(number)
                most = max(most, len(inside))
                time.sleep(0)
                inside.remove(number)
                with turn.waiting():
                    time.sleep(0.0001)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(HANG_S)
    assert not any(thread.is_alive() for thread in threads)
    assert most == 1
    # Whoever waits for something else keeps nobody out.
    reached = threading.Event()

    def other() -> None:
        with turn:
            reached.set()

    with turn, turn.waiting():
        threading.Thread(target=other, daemon=True).start()
        assert reached.wait(HANG_S)


def test_a_peer_that_never_makes_us_wait_keeps_nobody_out() -> None:
    turn = Turn()
    reached = threading.Event()

    def other() -> None:
        with turn:
            reached.set()

    deadline = time.monotonic() + HANG_S
    with turn:
        threading.Thread(target=other, daemon=True).start()
        began = time.monotonic()
        turn.share()
        assert not reached.is_set() or time.monotonic() - began > LONGEST_S
        while not reached.is_set() and time.monotonic() < deadline:
            turn.share()
    assert reached.is_set()


def test_what_was_answered_before_is_waited_for_and_nothing_that_comes_later() -> None:
    untold = Untold()
    assert untold.wait(0)
    first = untold.begin()
    assert not untold.wait(0.05)
    passed = threading.Event()

    def wait() -> None:
        if untold.wait(HANG_S):
            passed.set()

    threading.Thread(target=wait, daemon=True).start()
    time.sleep(0.05)
    later = untold.begin()
    untold.end(first)
    assert passed.wait(HANG_S)
    untold.end(later)
    assert untold.wait(0)


def test_a_turn_that_nobody_gives_up_is_waited_for_so_long_and_no_longer() -> None:
    turn = Turn(longest_s=0.05)
    held, done = threading.Event(), threading.Event()

    def holder() -> None:
        with turn:
            held.set()
            done.wait(HANG_S)

    thread = threading.Thread(target=holder)
    thread.start()
    assert held.wait(HANG_S)
    with pytest.raises(TurnStuck), turn:
        pass
    # Whoever waited for something else meanwhile ends without a turn, and takes nobody's away.
    other = Turn(longest_s=0.05)
    taken, gone = threading.Event(), threading.Event()

    def thief() -> None:
        with other:
            taken.set()
            gone.wait(HANG_S)

    second = threading.Thread(target=thief)
    with pytest.raises(TurnStuck), other, other.waiting():
        second.start()
        assert taken.wait(HANG_S)
    assert not other.mine
    done.set()
    gone.set()
    for one in (thread, second):
        one.join(HANG_S)
    with turn, other:
        assert turn.mine
        assert other.mine
