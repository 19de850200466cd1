"""The block allocator: every block is free or owned by exactly one attempt at a request.

Ownership moves only here: `allocate` takes blocks from the free list, `free` gives all of an owner's blocks back.
"""

from collections import deque
from collections.abc import Iterable

from shared.ids import Attempt


def blocks_for(tokens: int, block_size: int) -> int:
    """Blocks that hold the KV of so many tokens."""
    return -(-tokens // block_size)


class BlockAllocator:
    """Paged KV memory of one worker, in blocks of `block_size` tokens (PagedAttention, SOSP'23, section 4)."""

    def __init__(self, total: int, block_size: int) -> None:
        self.total = total
        self.block_size = block_size
        self._free = deque(range(total))
        self._owned: dict[Attempt, list[int]] = {}

    @property
    def free_blocks(self) -> int:
        return len(self._free)

    @property
    def used_blocks(self) -> int:
        return self.total - len(self._free)

    def owned(self, owner: Attempt) -> list[int]:
        """The owner's blocks in token order; empty if it has none. The list grows in place with `reach`."""
        return self._owned.get(owner, [])

    def reach(self, owner: Attempt, tokens: int) -> bool:
        """Give the owner blocks until they hold `tokens`; False, and nothing changed, if there are not enough."""
        missing = blocks_for(tokens, self.block_size) - len(self.owned(owner))
        if missing > len(self._free):
            return False
        if missing > 0:
            blocks = self._owned.setdefault(owner, [])
            blocks.extend(self._free.popleft() for _ in range(missing))
        return True

    def release(self, owner: Attempt) -> int:
        """Take all of the owner's blocks back; how many. Freeing a stranger is harmless."""
        blocks = self._owned.pop(owner, [])
        self._free.extendleft(reversed(blocks))  # used next, and in order: their memory is there, and in the caches
        return len(blocks)

    def leaked(self, live: Iterable[Attempt]) -> int:
        """Blocks whose owner is not among the live requests: memory that nobody will ever give back."""
        alive = set(live)
        return sum(len(blocks) for owner, blocks in self._owned.items() if owner not in alive)

    def check(self) -> None:
        held = [block for blocks in self._owned.values() for block in blocks]
        everything = sorted([*self._free, *held])
        assert everything == list(range(self.total)), "a block is lost or owned twice"
        assert all(self._owned.values()), "an owner without blocks"
