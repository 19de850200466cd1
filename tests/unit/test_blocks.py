"""The block allocator: no block is owned twice, none is lost, whatever the order of calls."""

from hypothesis import given
from hypothesis import strategies as st

from shared.ids import RequestId
from shared.kv.blocks import BlockAllocator, blocks_for

OWNERS = [(RequestId(name), 1) for name in "abcd"]
CALLS = st.lists(st.tuples(st.sampled_from(OWNERS), st.integers(0, 200), st.booleans()), max_size=60)


@given(CALLS)
def test_free_and_owned_always_make_up_the_whole(calls: list[tuple[tuple[RequestId, int], int, bool]]) -> None:
    allocator = BlockAllocator(total=12, block_size=16)
    for owner, tokens, give_back in calls:
        if give_back:
            allocator.release(owner)
        else:
            before = list(allocator.owned(owner))
            free = allocator.free_blocks
            reached = allocator.reach(owner, tokens)
            after = allocator.owned(owner)
            assert reached == (max(0, blocks_for(tokens, 16) - len(before)) <= free)
            assert list(after[: len(before)]) == before, "blocks that hold KV must not move"
            assert not reached or len(after) >= blocks_for(tokens, 16)
        allocator.check()
        assert allocator.used_blocks + allocator.free_blocks == 12


def test_leaked_counts_blocks_of_owners_that_are_not_live() -> None:
    allocator = BlockAllocator(total=8, block_size=16)
    alive, dead = OWNERS[:2]
    assert allocator.reach(alive, 20) and allocator.reach(dead, 40)
    assert allocator.leaked([alive]) == 3
    assert allocator.leaked([alive, dead]) == 0


def test_attempts_of_one_request_own_apart() -> None:
    allocator = BlockAllocator(total=8, block_size=16)
    first, second = (RequestId("r"), 1), (RequestId("r"), 2)
    assert allocator.reach(first, 16) and allocator.reach(second, 32)
    assert allocator.release(first) == 1
    assert len(allocator.owned(second)) == 2
