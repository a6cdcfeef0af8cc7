"""Kernel calls recorded once and then played as one (what CUDA graphs are to a GPU).

A step of few sequences would spend a third of its time in Python between the kernels, waking the threads for each. On
a tape one team of threads goes through all calls of all layers, with a barrier after each. What differs from step to
step (how many rows, where their positions and adapters are) has a name, and is written into the calls before they play.
"""

from collections import defaultdict
from typing import Any

import numpy as np
import torch
from llvmlite import ir
from numba import carray, types
from numba.extending import intrinsic
from torch import Tensor

from workers.generation.engine.cpu.openmp import BARRIER, Kernel
from workers.generation.engine.cpu.scalar import as_i64
from workers.generation.engine.kernel_calls import Argument, Varying

WIDTH = 24  # integers of a call: the kernel's address, its counter of taken work, its arguments


class Tape:
    """Calls in order, for up to `capacity` rows. Memory of a layer is used again by the next but one."""

    def __init__(self, capacity: int) -> None:
        self.capacity = self._room = capacity
        self._rows = "rows"
        self._calls: list[list[int]] = []
        self._places = defaultdict[str, list[int]](list)
        self._memory: dict[tuple[int, int, int, int, torch.dtype], Tensor] = {}
        self._layer = self._taken = 0
        self._table: Any = None
        self._where = self._which = np.empty(0, dtype=np.int64)

    def empty(self, like: Tensor, width: int, dtype: torch.dtype | None = None) -> Tensor:
        key = self._room, self._layer % 2, self._taken, width, dtype or like.dtype
        self._taken += 1
        if key not in self._memory:
            self._memory[key] = torch.empty(1, self._room, width, dtype=key[-1])
        return self._memory[key]

    def varying(self, name: str, value: int) -> Argument:
        return Varying(self._rows if name == "rows" else name)

    def call(self, kernel: Kernel, *arguments: Argument) -> None:
        begin = len(self._calls) * WIDTH
        own = [kernel.address, 0]
        for argument in arguments:
            if isinstance(argument, Varying):
                self._places[argument].append(begin + len(own))
            own.append(0 if isinstance(argument, Varying) else argument)
        if len(own) > WIDTH:
            raise ValueError("a kernel takes more arguments than a call on tape holds")
        self._calls.append(own + [0] * (WIDTH - len(own)))

    def next_layer(self) -> None:
        """What the layer before the last wrote is no longer needed."""
        self._layer, self._taken = self._layer + 1, 0

    def next_section(self, rows: str, capacity: int) -> int:
        """What comes now is for other rows: up to `capacity`, the argument `rows` tells how many. Returns how many
        calls come before.
        """
        self.next_layer()
        self._rows, self._room = rows, capacity
        return len(self._calls)

    def play(self, values: dict[str, int], calls: int | None = None) -> None:
        """`values`: the varying arguments of this step, by name. `calls`: no more than the first so many."""
        if self._table is None:
            self._table = np.array(self._calls, dtype=np.int64).reshape(-1)
            self._where = np.concatenate(list(self._places.values()))
            self._which = np.repeat(np.arange(len(self._places)), [len(places) for places in self._places.values()])
        # At once: after a step each of numpy's operations finds its own code out of the caches.
        numbers = np.array([values[name] for name in self._places], dtype=np.int64)
        self._table[self._where] = numbers[self._which]
        PLAY(self._table.ctypes.data, len(self._calls) if calls is None else calls, BARRIER)


@intrinsic
def _run(_: Any, function: Any, pointer: Any) -> Any:
    """The kernel at this address with the arguments at that one; `pointer` 0: without (a barrier)."""

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        kind = ir.FunctionType(ir.VoidType(), [ir.IntType(64).as_pointer()])
        numbers = ir.IntType(64).as_pointer()
        builder.call(builder.inttoptr(arguments[0], kind.as_pointer()), [builder.inttoptr(arguments[1], numbers)])
        return context.get_dummy_value()

    return types.void(types.int64, types.int64), codegen


def _play(pointer: Any) -> None:
    """Arguments: 1 table of calls, 2 how many, 3 the team's barrier (0: there is one thread). In every thread."""
    a = carray(pointer, 4)
    for at in range(a[2]):
        own = a[1] + at * WIDTH * 8
        _run(carray(as_i64(own), 1)[0], own + 8)
        if a[3] != 0:
            _run(a[3], 0)
        carray(as_i64(own), 2)[1] = 0  # nobody takes of it any more


PLAY = Kernel(_play)
