"""The KV cache as book-keeping: blocks of token positions, handed out and taken back. No tensors here."""

BLOCK_SIZE = 32


class BlockPool:
    """`total` blocks of `block_size` token positions. Freed blocks are reused first, so memory stays warm."""

    def __init__(self, total: int, block_size: int) -> None:
        self.total = total
        self.block_size = block_size
        self._free = list(reversed(range(total)))

    @property
    def used(self) -> int:
        return self.total - len(self._free)

    @property
    def capacity(self) -> int:
        """Token positions of the whole pool."""
        return self.total * self.block_size

    def grow(self, blocks: list[int], tokens: int) -> bool:
        """Extend `blocks` in place to cover `tokens` positions; False (nothing taken) when too few are free."""
        missing = -(-tokens // self.block_size) - len(blocks)
        if missing > len(self._free):
            return False
        for _ in range(missing):
            blocks.append(self._free.pop())
        return True

    def release(self, blocks: list[int]) -> None:
        """Give all of `blocks` back and empty the list."""
        self._free.extend(reversed(blocks))
        blocks.clear()
