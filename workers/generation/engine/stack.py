"""A model whose every layer is fused: the layers' kernels are recorded once and played as one (`cpu/tape.py`)."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from workers.generation.engine.adapters import StepAdapters
from workers.generation.engine.attention import PackedStep
from workers.generation.engine.fused import FusedLayer
from workers.generation.engine.rotation import Rotation

if TYPE_CHECKING:
    from workers.generation.engine.cpu.tape import Tape
    from workers.generation.engine.surgery import PlainLinear

LEAST_ROWS = 64  # that a recording is made for


@dataclass(frozen=True)
class Recording:
    """What the layers do to the rows in `before`; what comes of them is in `after`. `room`: for adapters' ranks."""

    tape: "Tape"
    before: Tensor
    after: Tensor
    room: int


class FusedStack:
    """A model's layers. Steps with adapters have a recording of their own: their calls are more."""

    def __init__(self, layers: Sequence[FusedLayer], adapters: StepAdapters) -> None:
        self._layers, self._adapters = layers, adapters
        self._shape = layers[0].attention.shape
        self._recordings: dict[bool, Recording] = {}

    def __call__(self, hidden: Tensor, positions: tuple[Tensor, Tensor], step: PackedStep) -> Tensor:
        """`[1, rows, hidden]` → the same, in memory that the next step writes again. `positions`: cos and sin,
        contiguous.
        """
        rows, adapters = hidden.shape[1], self._adapters
        recording = self._recordings.get(adapters.room > 0)
        if recording is None or recording.tape.capacity < rows or recording.room < adapters.room:
            recording = self._record(hidden, positions, step)
            self._recordings[adapters.room > 0] = recording
        recording.before[:, :rows] = hidden
        cos, sin = positions
        values = {"rows": rows, "cos": cos.data_ptr(), "sin": sin.data_ptr(), "places": step.places.data_ptr()}
        recording.tape.play(values | step.plan.arguments(self._shape) | adapters.arguments())
        return recording.after[:, :rows]

    def _record(self, like: Tensor, positions: tuple[Tensor, Tensor], step: PackedStep) -> Recording:
        from workers.generation.engine.cpu.tape import Tape

        capacity = max(LEAST_ROWS, 1 << (like.shape[1] - 1).bit_length())
        tape = Tape(capacity)
        before = hidden = torch.zeros(1, capacity, like.shape[2], dtype=like.dtype)
        for layer in self._layers:
            tape.next_layer()
            hidden = layer.forward(hidden, position_embeddings=positions, step=step, on=tape)
        return Recording(tape, before, hidden, self._adapters.room)


class FusedDecoder:
    """What a model of such layers is besides them, without the wrappers around it."""

    def __init__(self, decoder: Any, head: "PlainLinear", layers: Sequence[FusedLayer], adapters: StepAdapters) -> None:
        self._embed, self._norm, self._head = decoder.embed_tokens, decoder.norm, head
        self._rotation = Rotation(decoder.rotary_emb, self._embed.weight)
        self._stack = FusedStack(layers, adapters)

    def logits(self, ids: Tensor, positions: Tensor, wanted: Tensor, step: PackedStep) -> Tensor:
        """ids and positions `[1, rows]`; wanted: rows of which logits are returned → `[wanted rows, vocabulary]`."""
        hidden = self._embed(ids)
        hidden = self._stack(hidden, self._rotation(hidden, positions), step)
        return self._head.forward(self._norm.forward(hidden[:, wanted]))[0]
