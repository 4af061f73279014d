from __future__ import annotations

import threading

from heimdallr_ray.listener.reactor import Checkpoint


def test_a_reactor_that_rests_does_nothing_until_it_is_let_go():
    """As often and as quickly as a sender of small images closes and opens it."""
    checkpoint = Checkpoint()
    ended = threading.Event()
    passes = 0

    def react() -> None:
        nonlocal passes
        while not ended.is_set():
            checkpoint.wait()
            passes += 1

    reactor = threading.Thread(target=react)
    reactor.start()
    try:
        for _ in range(3000):
            assert checkpoint.rest(30)
            before = passes
            # Other threads get their turn; one that passed would show.
            ended.wait(0.00001)
            assert passes == before
            checkpoint.set()
    finally:
        ended.set()
        checkpoint.set()
        reactor.join(30)
    assert passes > 0


def test_a_reactor_that_never_comes_is_not_waited_for():
    assert not Checkpoint().rest(0.01)


def test_an_open_checkpoint_is_passed_at_once():
    checkpoint = Checkpoint()
    assert checkpoint.is_set()
    assert checkpoint.wait(0.01)
    checkpoint.clear()
    assert not checkpoint.wait(0.01)
