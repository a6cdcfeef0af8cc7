"""Workers for other bases: started when asked for, the one unused longest ends first. Processes that only sleep."""

import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, field

import pytest

from workers.bases.roster import RESTART_PAUSE, Roster


@dataclass
class Machine:
    """A clock that only moves when told, and every process started."""

    now: float = 0.0
    started: list[tuple[str, subprocess.Popen[bytes]]] = field(default_factory=list)

    def start(self, base: str) -> subprocess.Popen[bytes]:
        process = subprocess.Popen(["sleep", "600"])
        self.started.append((base, process))
        return process

    @property
    def names(self) -> list[str]:
        return [base for base, _ in self.started]

    def wait_for_end_of(self, base: str) -> None:
        next(process for name, process in reversed(self.started) if name == base).wait(10)


@pytest.fixture
def machine() -> Iterator[Machine]:
    machine = Machine()
    yield machine
    for _, process in machine.started:
        process.kill()
        process.wait(10)


def roster(machine: Machine, most: int = 2) -> Roster:
    return Roster(machine.start, most, idle_seconds=100, clock=lambda: machine.now)


def test_a_base_is_started_once_however_often_it_is_asked_for(machine: Machine) -> None:
    bases = roster(machine)
    for _ in range(3):
        bases.tend(["a"])
    assert machine.names == ["a"]


def test_the_base_unused_longest_makes_room(machine: Machine) -> None:
    bases = roster(machine)
    bases.tend(["a"])
    machine.now = 1
    bases.tend(["b"])
    machine.now = 2
    bases.tend(["a", "c"])
    machine.wait_for_end_of("b")
    bases.tend(["a", "c"])
    assert machine.names == ["a", "b", "c"]
    assert bases.bases == {"a", "c"}


def test_bases_in_use_are_left_alone_and_the_next_one_waits(machine: Machine) -> None:
    bases = roster(machine)
    bases.tend(["a", "b", "c"])
    bases.tend(["a", "b", "c"])
    assert machine.names == ["a", "b"]
    assert all(process.poll() is None for _, process in machine.started)


def test_an_idle_base_ends(machine: Machine) -> None:
    bases = roster(machine)
    bases.tend(["a"])
    machine.now = 100
    bases.tend([])
    machine.wait_for_end_of("a")
    bases.tend([])
    assert bases.bases == set()


def test_a_worker_that_died_is_started_again_after_a_pause(machine: Machine) -> None:
    bases = roster(machine)
    bases.tend(["a"])
    machine.started[0][1].kill()
    machine.wait_for_end_of("a")
    bases.tend(["a"])
    assert machine.names == ["a"]
    machine.now = RESTART_PAUSE
    bases.tend(["a"])
    assert machine.names == ["a", "a"]
