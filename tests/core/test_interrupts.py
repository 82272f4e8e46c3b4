"""Interruptions that wait: signals are noted, the second Ctrl-C is not, and handlers come back."""

import os
import signal
import threading

import pytest

from lightgen.core.interrupts import Interrupts, Terminated, interruption


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_is_noted_and_handlers_come_back(number):
    before = signal.getsignal(number)
    with Interrupts() as interrupts:
        assert interrupts.pending is None
        os.kill(os.getpid(), number)
        assert interrupts.pending == number
    assert signal.getsignal(number) is before


@pytest.mark.parametrize("first", [signal.SIGINT, signal.SIGTERM])
def test_a_further_ctrl_c_interrupts_at_once(first):
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt), Interrupts() as interrupts:
        os.kill(os.getpid(), first)
        assert interrupts.pending == first
        os.kill(os.getpid(), signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is before


def test_a_further_request_to_terminate_waits_too():
    with Interrupts() as interrupts:
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGTERM)
    assert interrupts.pending == signal.SIGTERM


def test_other_threads_change_nothing():
    seen = []

    def work():
        with Interrupts() as interrupts:
            seen.append((signal.getsignal(signal.SIGTERM), interrupts.pending))

    thread = threading.Thread(target=work)
    before = signal.getsignal(signal.SIGTERM)
    thread.start()
    thread.join()
    assert seen == [(before, None)] and signal.getsignal(signal.SIGTERM) is before


def test_each_signal_has_its_exception():
    assert type(interruption(signal.SIGTERM)) is Terminated
    assert type(interruption(signal.SIGINT)) is KeyboardInterrupt
