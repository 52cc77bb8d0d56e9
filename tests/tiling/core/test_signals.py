"""Signals are remembered, and their handlers put back."""

from __future__ import annotations

import os
import signal
import threading

import pytest

from tiling.core.signals import STOPPING, Stop, listening


@pytest.mark.parametrize("number", STOPPING)
def test_a_signal_is_remembered_and_kills_nobody(number: signal.Signals) -> None:
    before = signal.getsignal(number)
    with listening() as stop:
        assert not stop
        os.kill(os.getpid(), number)
        assert stop
        assert stop.signal is number
    assert signal.getsignal(number) is before


def test_handlers_are_put_back_after_an_error() -> None:
    before = [signal.getsignal(number) for number in STOPPING]
    with pytest.raises(ZeroDivisionError), listening():
        1 / 0  # noqa: B018
    assert [signal.getsignal(number) for number in STOPPING] == before


def test_other_threads_cannot_listen_and_do_not_fail() -> None:
    found: list[Stop] = []

    def listen() -> None:
        with listening() as stop:
            found.append(stop)

    thread = threading.Thread(target=listen)
    thread.start()
    thread.join()
    assert not found[0]


def test_a_signal_that_came_too_late_is_passed_on() -> None:
    """The work was through but for its end: whoever does more after it must hear of the wish to stop."""
    heard: list[int] = []
    before = signal.signal(signal.SIGTERM, lambda number, frame: heard.append(number))
    try:
        with listening():
            os.kill(os.getpid(), signal.SIGTERM)
        assert heard == [signal.SIGTERM]
        with pytest.raises(ZeroDivisionError), listening() as stop:
            stop.ask(signal.SIGTERM) or 1 / 0  # type: ignore[func-returns-value]
        assert heard == [signal.SIGTERM], "what went wrong is told instead"
    finally:
        signal.signal(signal.SIGTERM, before)
