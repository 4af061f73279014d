from __future__ import annotations

from heimdallr_ray.operations.rayhead import last_words

KILLED = """2026-01-02 00:31:10,690 ERR scripts.py:120 -- \x1b[31mSome Ray subprocesses exited unexpectedly:\x1b[39m
2026-01-02 00:31:10,690 ERR scripts.py:124 -- \x1b[31m  gcs_server [exit code=-9]\x1b[39m
Global stats: 489 total (1 active)
Event stats:
        io_context_monitor_probe - 120 total (0 active)

00:31:10,694 ERR scripts.py:128 -- \x1b[31m--- END gcs_server.out tail (exit code(s)=-9 (signal 9)) ---\x1b[39m
2026-01-02 00:31:10,694 ERR scripts.py:1315 -- \x1b[31mRemaining processes will be killed.\x1b[39m

"""


def test_the_end_of_a_killed_head_is_told_in_one_line_without_statistics() -> None:
    said = last_words(KILLED)
    assert "gcs_server" in said and "signal 9" in said
    assert "\n" not in said and "\x1b" not in said and "stats" not in said


def test_a_log_that_names_no_failure_gives_its_last_line_and_an_empty_one_says_so() -> None:
    assert last_words("started\n\nlistening\n\n") == "listening"
    assert last_words("\n") == "it said nothing"


def test_what_is_told_is_bounded() -> None:
    assert len(last_words("Error: " + "x" * 10_000)) <= 300
