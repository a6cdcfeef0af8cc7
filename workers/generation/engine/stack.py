"""A model whose every layer is fused: its kernels are recorded once and played as one (`cpu/tape.py`)."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import Tensor

from workers.generation.engine.adapters import StepAdapters
from workers.generation.engine.attention import PackedStep
from workers.generation.engine.fused import FusedLayer
from workers.generation.engine.rotation import Rotation

if TYPE_CHECKING:
    from workers.generation.engine.cpu.tape import Tape
    from workers.generation.engine.surgery import PlainLinear

LEAST_ROWS = 64  # that a recording is made for
MOST_WANTED = 64  # rows whose logits are made on tape


@dataclass(frozen=True)
class Recording:
    """Calls on `tape`: first `layer_calls`, from the rows' tokens and `angles` (their positions' cos and sin) to
    `hidden`; then those that make `logits` of the rows wanted. What comes of them is there until it plays again.
    `room`: for adapters' ranks.
    """

    tape: "Tape"
    angles: tuple[Tensor, ...]
    hidden: Tensor
    layer_calls: int
    logits: Tensor
    room: int


class FusedDecoder:
    """A model of fused layers, without transformers' wrappers. Steps with adapters have a recording of their own: their
    calls are more.
    """

    def __init__(self, decoder: Any, head: "PlainLinear", layers: Sequence[FusedLayer], adapters: StepAdapters) -> None:
        self._table, self._norm, self._head = decoder.embed_tokens.weight.detach(), decoder.norm, head
        self._rotation = Rotation(decoder.rotary_emb, self._table, decoder.config.max_position_embeddings)
        self._layers, self._adapters = layers, adapters
        self._shape = layers[0].attention.shape
        self._recordings: dict[bool, Recording] = {}

    @property
    def is_steady(self) -> bool:
        """A row's angles are a matter of its position alone, as its other numbers are of the row."""
        return self._rotation.table is not None

    def logits(self, ids: Tensor, positions: Tensor, wanted: Tensor, step: PackedStep) -> Tensor:
        """ids, positions and wanted: `[rows]`, int64, the last the rows of which logits are returned → `[wanted rows,
        vocabulary]`, in memory that the next step may write again.
        """
        rows, adapters = len(ids), self._adapters
        recording = self._recordings.get(adapters.room > 0)
        if recording is None or recording.tape.capacity < rows or recording.room < adapters.room:
            recording = self._recordings[adapters.room > 0] = self._record(rows, step)
        if self._rotation.table is None:
            for own, now in zip(recording.angles, self._rotation(self._table, positions[None]), strict=True):
                own[:, :rows] = now
        values = {
            "ids": ids.data_ptr(),
            "rows": rows,
            "positions": positions.data_ptr(),
            "places": step.places.data_ptr(),
            "wanted": wanted.data_ptr(),
            "wanted_rows": len(wanted),
        }
        values |= step.plan.arguments(self._shape) | adapters.arguments()
        if len(wanted) <= MOST_WANTED:
            recording.tape.play(values)
            return recording.logits[0, : len(wanted)]
        recording.tape.play(values, recording.layer_calls)
        return self._head.forward(self._norm.forward(recording.hidden[:, wanted]))[0]

    def _record(self, rows: int, step: PackedStep) -> Recording:
        from workers.generation.engine.cpu.tape import Tape

        tape = Tape(max(LEAST_ROWS, 1 << (rows - 1).bit_length()))
        angles = tuple(self._table.new_empty(1, tape.capacity, self._rotation.width) for _ in range(2))
        if self._rotation.table is not None:
            for table, own in zip(self._rotation.table, angles, strict=True):
                look_up(own, "positions", table, tape)
        hidden = look_up(tape.empty(self._table, self._table.shape[1]), "ids", self._table, tape)
        for layer in self._layers:
            tape.next_layer()
            hidden = layer.forward(hidden, position_embeddings=angles, step=step, on=tape)
        layer_calls = tape.next_section("wanted_rows", MOST_WANTED)
        last = look_up(tape.empty(hidden, hidden.shape[2]), "wanted", hidden, tape)
        logits = self._head.forward(self._norm.forward(last, tape), tape)
        return Recording(tape, angles, hidden, layer_calls, logits, self._adapters.room)


def look_up(out: Tensor, indices: str, table: Tensor, on: "Tape") -> Tensor:
    """Rows of `table` into `out`, which is as wide. `indices`: the argument's name; the kernel does not check that the
    table has such rows, the engine lets in no other tokens and no more positions than the model has.
    """
    from workers.generation.engine.cpu.pointwise import LOOK_UP

    words = out.shape[-1] * out.itemsize // 4
    on.call(LOOK_UP, table.data_ptr(), on.varying(indices, 0), out.data_ptr(), on.varying("rows", 0), words)
    return out
