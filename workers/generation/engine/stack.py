"""A model whose every layer is fused: its kernels are recorded once and played as one (`cpu/tape.py`)."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import Tensor

from workers.generation.engine.adapters import StepAdapters
from workers.generation.engine.attention import PackedStep
from workers.generation.engine.fused import FusedLayer
from workers.generation.engine.kernel_calls import Argument
from workers.generation.engine.rotation import Rotation

if TYPE_CHECKING:
    from workers.generation.engine.cpu.tape import Tape
    from workers.generation.engine.surgery import PlainLinear

LEAST_ROWS = 64  # that a recording is made for


@dataclass(frozen=True)
class Recording:
    """What comes of the kernels on `tape` is in `after`, until it plays again. `room`: for adapters' ranks."""

    tape: "Tape"
    after: Tensor
    room: int = 0


class FusedDecoder:
    """A model of fused layers, without transformers' wrappers. Steps with adapters have a recording of their own: their
    calls are more.
    """

    def __init__(self, decoder: Any, head: "PlainLinear", layers: Sequence[FusedLayer], adapters: StepAdapters) -> None:
        self._table, self._norm, self._head = decoder.embed_tokens.weight.detach(), decoder.norm, head
        self._rotation = Rotation(decoder.rotary_emb, self._table)
        self._layers, self._adapters = layers, adapters
        self._shape = layers[0].attention.shape
        self._recordings: dict[bool, Recording] = {}
        self._last: Recording | None = None

    def logits(self, ids: Tensor, positions: Tensor, wanted: Tensor, step: PackedStep) -> Tensor:
        """ids, positions and wanted: `[rows]`, int64, the last the rows of which logits are returned → `[wanted rows,
        vocabulary]`, in memory that the next step may write again.
        """
        hidden = self._through_layers(ids, positions, step)
        if len(wanted) > LEAST_ROWS:
            return self._head.forward(self._norm.forward(hidden[None, wanted]))[0]
        if self._last is None:
            self._last = self._record_last()
        values = {"hidden": hidden.data_ptr(), "wanted": wanted.data_ptr(), "rows": len(wanted)}
        self._last.tape.play(values)
        return self._last.after[0, : len(wanted)]

    def _through_layers(self, ids: Tensor, positions: Tensor, step: PackedStep) -> Tensor:
        """→ `[rows, hidden]`."""
        rows, adapters = len(ids), self._adapters
        cos, sin = self._rotation(self._table, positions[None])
        recording = self._recordings.get(adapters.room > 0)
        if recording is None or recording.tape.capacity < rows or recording.room < adapters.room:
            recording = self._record_layers(rows, (cos, sin), step)
            self._recordings[adapters.room > 0] = recording
        values = {
            "ids": ids.data_ptr(),
            "rows": rows,
            "cos": cos.data_ptr(),
            "sin": sin.data_ptr(),
            "places": step.places.data_ptr(),
        }
        recording.tape.play(values | step.plan.arguments(self._shape) | adapters.arguments())
        return recording.after[0, :rows]

    def _record_layers(self, rows: int, positions: tuple[Tensor, Tensor], step: PackedStep) -> Recording:
        from workers.generation.engine.cpu.tape import Tape

        tape = Tape(max(LEAST_ROWS, 1 << (rows - 1).bit_length()))
        hidden = look_up(self._table, "ids", self._table.data_ptr(), tape)
        for layer in self._layers:
            tape.next_layer()
            hidden = layer.forward(hidden, position_embeddings=positions, step=step, on=tape)
        return Recording(tape, hidden, self._adapters.room)

    def _record_last(self) -> Recording:
        from workers.generation.engine.cpu.tape import Tape

        tape = Tape(LEAST_ROWS)
        hidden = look_up(self._table, "wanted", tape.varying("hidden", 0), tape)
        return Recording(tape, self._head.forward(self._norm.forward(hidden, tape), tape))


def look_up(like: Tensor, indices: str, table: Argument, on: "Tape") -> Tensor:
    """Rows of `table` (an address), which is as wide as `like` → `[1, rows, width]`. `indices`: the argument's name;
    nobody checks that the table has such rows.
    """
    from workers.generation.engine.cpu.pointwise import LOOK_UP

    width = like.shape[-1]
    out = on.empty(like, width)
    count = on.varying("rows", 0)
    on.call(LOOK_UP, table, on.varying(indices, 0), out.data_ptr(), count, width * like.itemsize // 4)
    return out
