# SPDX-License-Identifier: Apache-2.0
"""Runs functions as if each were a process of its own, and switches between any two bytecodes of one module.

The order is random, and the same for the same seed.  A process can be killed between any two bytecodes: it
never goes on, and the locks that it holds are released, as the kernel does with robust locks.
"""

from __future__ import annotations

import ctypes
import errno
import random
import sys
import threading
from collections.abc import Callable, Sequence
from types import FrameType, ModuleType
from typing import Any

import pytest

from mailproxy.limits.mutex import Mutex

_GIVE_UP_SECONDS = 20.0


class _Killed(BaseException):
    """Ends the thread of a killed process after the run."""


class _Process:
    def __init__(self, number: int, run: Callable[[], object]) -> None:
        self.number = number
        self.run = run
        self.may_run = threading.Semaphore(0)
        self.is_over = self.is_killed = False
        self.error: BaseException | None = None


class Interleaving:
    """One run.

    Args:
        module: The module between whose bytecodes processes are switched; its locks are replaced.
        seed: Of the order.
        switches: How probable a switch is at a bytecode.
        kill_at: The number of the bytecode, of all, at which the running process is killed; 0 for none.
        switch_at: The number of the bytecode at which the last process runs instead of the first, until
            it is over or waits for a lock; there are no other switches then.  0 for a random order.

    Attributes:
        killed: The index of the killed process, -1 for none.
    """

    def __init__(
        self, module: ModuleType, seed: int, *, switches: float = 0.1, kill_at: int = 0, switch_at: int = 0
    ) -> None:
        self._file = module.__file__
        self._random = random.Random(seed)
        self._switches = switches
        self._kill_at = kill_at
        self._switch_at = switch_at
        self._steps = 0
        self._owners: dict[int, _Process] = {}
        self._processes: list[_Process] = []
        self._current: _Process | None = None
        self._is_over = False
        self._all_over = threading.Event()
        self.killed = -1

    def replace_locks(self, module: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
        """Replace the locks that a module has imported by those of this run."""
        monkeypatch.setattr(module, "trylock", self.trylock)
        monkeypatch.setattr(module, "unlock", self.unlock)
        monkeypatch.setattr(module, "wait", self.wait)
        monkeypatch.setattr(module, "lock_patiently", lambda mutex: self.wait(mutex, self.trylock(mutex)))

    def run(self, functions: Sequence[Callable[[], object]]) -> None:
        """Run functions until all have returned or are killed; raises what one of them has raised."""
        self._processes = [_Process(number, each) for number, each in enumerate(functions)]
        threads = [threading.Thread(target=self._main, args=(each,), daemon=True) for each in self._processes]
        for thread in threads:
            thread.start()
        self._switch_from(None)
        assert self._all_over.wait(_GIVE_UP_SECONDS), "the processes block each other"
        self._is_over = True
        for each in self._processes:
            each.may_run.release()
        for thread in threads:
            thread.join(_GIVE_UP_SECONDS)
        self._current = None
        for each in self._processes:
            if each.error is not None:
                raise each.error

    # -- locks

    def trylock(self, mutex: Mutex) -> int:
        """As of ``mutex``; outside of a run it is free."""
        address = ctypes.addressof(mutex._obj)
        if address in self._owners:
            return errno.EBUSY
        if self._current is not None:
            self._owners[address] = self._current
        return 0

    def wait(self, mutex: Mutex, code: int) -> None:
        """Let others run until the lock is free."""
        while code:
            self._switch_from(self._current, self._current)
            code = self.trylock(mutex)

    def unlock(self, mutex: Mutex) -> None:
        """As of ``mutex``."""
        self._owners.pop(ctypes.addressof(mutex._obj), None)

    # -- switching

    def _main(self, process: _Process) -> None:
        process.may_run.acquire()
        try:
            sys.settrace(self._trace)
            process.run()
        except _Killed:
            return
        except BaseException as error:
            process.error = error
        finally:
            sys.settrace(None)
        process.is_over = True
        self._switch_from(process)

    def _trace(self, frame: FrameType, event: str, _: Any) -> Any:
        if frame.f_code.co_filename != self._file:
            return None
        frame.f_trace_opcodes, frame.f_trace_lines = True, False
        if event == "opcode" and not self._is_over:
            process = self._current
            assert process is not None
            self._steps += 1
            if self._steps == self._kill_at:
                self._kill(process)
            elif self._is_switched_here():
                self._switch_from(process)
        return self._trace

    def _is_switched_here(self) -> bool:
        if self._switch_at:
            return self._steps == self._switch_at
        return self._random.random() < self._switches

    def _kill(self, process: _Process) -> None:
        process.is_killed, self.killed = True, process.number
        for mutex in [mutex for mutex, owner in self._owners.items() if owner is process]:
            del self._owners[mutex]
        self._switch_from(process)

    def _choose(self, others: list[_Process], blocked: _Process | None) -> _Process:
        if not self._switch_at:
            return self._random.choice(others)
        free = [each for each in others if each is not blocked] or others
        return free[-1 if self._steps >= self._switch_at else 0]

    def _switch_from(self, process: _Process | None, blocked: _Process | None = None) -> None:
        """Let a process run, maybe another one; returns when this one runs again."""
        chosen: _Process | None
        others = [each for each in self._processes if not (each.is_over or each.is_killed)]
        if not others:
            self._all_over.set()
            chosen = None
        else:
            self._current = chosen = self._choose(others, blocked)
        if chosen is process and process is not None:
            return
        if chosen is not None:
            chosen.may_run.release()
        if process is not None and not process.is_over:
            process.may_run.acquire()
            if process.is_killed:
                raise _Killed
