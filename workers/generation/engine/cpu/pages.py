"""KV pages of one layer on a processor, in the layout that the kernels read (see `attend.py`)."""

from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from workers.generation.engine import cpu
from workers.generation.engine.cpu.attend import ATTEND, positions_per_task, value_width
from workers.generation.engine.cpu.rotate import ROTATE
from workers.generation.engine.cpu.scalar import bits
from workers.generation.engine.kernel_calls import NOW, Caller
from workers.generation.engine.kv_cache import BLOCK_SIZE
from workers.generation.engine.kv_pages import Shape, Spans


@dataclass(frozen=True)
class Plan:
    """`tables`: `[n, blocks]`. Tasks are made per number of queries that one takes, for all layers alike."""

    spans: Spans
    tables: Tensor
    made: dict[int, Tensor] = field(default_factory=dict)

    def tasks(self, positions: int) -> Tensor:
        """`[n, 4]`: first row, rows, position of the first, table; those that see most first, so that threads end
        together."""
        if positions not in self.made:
            begins, counts, starts = self.spans.begins, self.spans.counts, self.spans.starts
            span = np.arange(len(counts))
            if counts.max() > positions:
                pieces = -(-counts // positions)
                span = np.repeat(span, pieces)
                within = (np.arange(len(span)) - np.repeat(np.cumsum(pieces) - pieces, pieces)) * positions
                begins, starts = begins[span] + within, starts[span] + within
                counts = np.minimum(positions, counts[span] - within)
            order = np.argsort(-(starts + counts) * counts, kind="stable")
            tasks = np.empty((len(order), 4), dtype=np.int64)
            for column, each in enumerate((begins, counts, starts, span)):
                tasks[:, column] = each[order]
            self.made[positions] = torch.from_numpy(tasks)
        return self.made[positions]

    def arguments(self, shape: Shape) -> dict[str, int]:
        """What the attention kernel takes of a step, in its order."""
        tasks = self.tasks(positions_per_task(shape.heads // shape.kv_heads))
        return {
            "tasks": tasks.data_ptr(),
            "task_count": tasks.shape[0],
            "tables": self.tables.data_ptr(),
            "blocks": self.tables.shape[1],
        }


class KernelPages:
    def __init__(self, blocks: int, kv_heads: int, head_dim: int, dtype: torch.dtype) -> None:
        self._form, numbers = (kv_heads, head_dim, dtype), BLOCK_SIZE * head_dim
        self._pages = torch.zeros(blocks, kv_heads, numbers + BLOCK_SIZE * value_width(head_dim), dtype=dtype)
        self._keys, self._values = self._pages.data_ptr(), self._pages.data_ptr() + numbers * dtype.itemsize

    @staticmethod
    def plan(spans: Spans) -> Plan:
        return Plan(spans, torch.from_numpy(spans.tables))

    def store(self, qkv: Tensor, places: Tensor, shape: Shape) -> None:
        self.rotate(qkv, places, shape, None, None, None)

    def rotate(
        self,
        qkv: Tensor,
        places: Tensor,
        shape: Shape,
        positions: tuple[Tensor, Tensor] | None,
        norms: tuple[Tensor, Tensor] | None,
        norm_form: tuple[int, int] | None,
        on: Caller = NOW,
    ) -> None:
        """Norm and rotate queries and keys in place, then store. `positions`: cos and sin `[rows, rotated]`, which stay
        where they are as long as a tape plays; `norms`: weights of the query's and key's head norm; `norm_form`: bits
        of epsilon, offset of the weights.
        """
        self._check(qkv, shape)
        cos, sin = positions or (qkv, qkv)
        epsilon, offset = norm_form or (0, 0)
        on.call(
            ROTATE[cpu.KINDS[qkv.dtype]],
            qkv.data_ptr(),
            cos.data_ptr(),
            sin.data_ptr(),
            norms[0].data_ptr() if norms else 0,
            norms[1].data_ptr() if norms else 0,
            self._keys,
            self._values,
            on.varying("rows", qkv.shape[0]),
            shape.heads,
            shape.kv_heads,
            shape.head_dim,
            cos.shape[-1] if positions else 0,
            epsilon,
            offset,
            on.varying("places", places.data_ptr()),
            torch.get_num_threads(),
        )

    def _check(self, qkv: Tensor, shape: Shape) -> None:
        """The kernels read by address. Raises ValueError for a layer of another form than these pages were made for."""
        if (shape.kv_heads, shape.head_dim, qkv.dtype) != self._form or not qkv.is_contiguous():
            raise ValueError("a layer's keys and values are not of its pages' form")

    def attend(self, qkv: Tensor, plan: Plan, shape: Shape, on: Caller = NOW) -> Tensor:
        self._check(qkv, shape)
        output = on.empty(qkv.view(1, qkv.shape[0], -1), shape.heads * shape.head_dim)
        on.call(
            ATTEND[cpu.KINDS[qkv.dtype]],
            qkv.data_ptr(),
            self._keys,
            self._values,
            output.data_ptr(),
            shape.heads,
            shape.kv_heads,
            shape.head_dim,
            shape.window,
            bits(shape.scale),
            *(on.varying(name, value) for name, value in plan.arguments(shape).items()),
        )
        return output.view(qkv.shape[0], shape.heads, shape.head_dim)
