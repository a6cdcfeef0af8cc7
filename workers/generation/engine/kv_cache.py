"""The KV cache as book-keeping: blocks of token positions, counted by their users, found again by what they hold.

A full block is known by the chain of all tokens up to its end, begun with a salt (tenant and model version): equal
prompts of one tenant share blocks, those of two tenants never do. Pure Python, no tensors here.
"""

from collections import OrderedDict
from collections.abc import Sequence as Seq
from hashlib import blake2b

BLOCK_SIZE = 32

Key = bytes


def chain(before: Key, tokens: Seq[int]) -> Key:
    """The key of a block that holds `tokens`, after all that `before` stands for."""
    return blake2b(before + b"".join(token.to_bytes(4, "little") for token in tokens), digest_size=16).digest()


class BlockPool:
    """`total` blocks of `block_size` token positions.

    A block without users keeps what it holds until nobody else has a free one: the least recently used goes first.
    """

    def __init__(self, total: int, block_size: int) -> None:
        self.total = total
        self.block_size = block_size
        self._free = list(reversed(range(total)))
        self._users = [0] * total
        self._key_of: dict[int, Key] = {}
        self._block_of: dict[Key, int] = {}
        self._idle: OrderedDict[int, None] = OrderedDict()

    @property
    def used(self) -> int:
        """Blocks that somebody holds."""
        return self.total - self.available

    @property
    def available(self) -> int:
        return len(self._free) + len(self._idle)

    @property
    def capacity(self) -> int:
        """Token positions of the whole pool."""
        return self.total * self.block_size

    def find(self, salt: Key, tokens: Seq[int]) -> list[int]:
        """The longest known run of full blocks at the beginning of `tokens`, now held by one more user."""
        blocks, key = list[int](), salt
        for end in range(self.block_size, len(tokens) + 1, self.block_size):
            key = chain(key, tokens[end - self.block_size : end])
            block = self._block_of.get(key)
            if block is None:
                break
            self._idle.pop(block, None)
            self._users[block] += 1
            blocks.append(block)
        return blocks

    def remember(self, block: int, key: Key) -> None:
        """`block` is full and holds what `key` says. The first block with that content is the one to be found."""
        if key not in self._block_of:
            self._block_of[key] = block
            self._key_of[block] = key

    def grow(self, blocks: list[int], tokens: int) -> bool:
        """Extend `blocks` in place to cover `tokens` positions; False (nothing taken) when too few are free."""
        missing = -(-tokens // self.block_size) - len(blocks)
        if missing > self.available:
            return False
        for _ in range(missing):
            blocks.append(self._take())
        return True

    def release(self, blocks: list[int]) -> None:
        """Give all of `blocks` back and empty the list. Of a sequence's blocks the last is forgotten first."""
        for block in reversed(blocks):
            self._users[block] -= 1
            if self._users[block] == 0:
                if block in self._key_of:
                    self._idle[block] = None
                else:
                    self._free.append(block)
        blocks.clear()

    def _take(self) -> int:
        if self._free:
            block = self._free.pop()
        else:
            block, _ = self._idle.popitem(last=False)
            del self._block_of[self._key_of.pop(block)]
        self._users[block] = 1
        return block
