"""The KV hand-off as a whole: both deciders joined by a network that a test drives step by step.

Roads keep their order (a link is FIFO), but between roads anything may happen in any order; slices arrive in any order.
"""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shared.policy import handoff as h
from shared.wire.terms import PushMode
from tests.support.pair import P, Pair, T
from tests.support.samples import submitted


@pytest.mark.parametrize("mode", PushMode)
def test_every_slice_crosses_and_the_request_is_admitted_once(mode: PushMode) -> None:
    pair, request = Pair(), submitted(tokens=40)
    pair.start(request, mode)
    pair.run()
    assert pair.admitted == [request.key]
    assert [d.key for d in pair.done] == [request.key] and pair.done[0].resent == 0
    assert len(pair.allocator.owned(request.key)) == 3
    pair.assert_clean()


def test_slices_are_pushed_while_later_layers_are_computed() -> None:
    pair, request = Pair(), submitted()
    pair.start(request)
    while pair.to_token or pair.to_post or pair.to_prompt:
        pair.moves()[0]()
    pair.computing[request.key].popleft()()
    assert set(pair.sent) == {(100, 0)}, "layer 0 leaves before layer 1 is computed"


def test_token_ranges_of_a_long_prompt_are_slices_of_their_own() -> None:
    pair, request = Pair(blocks=1000), submitted(tokens=5000)
    pair.flip = {4, 8}
    pair.start(request)
    pair.run()
    assert pair.admitted == [request.key] and pair.done[0].resent == 2
    assert pair.done[0].size_bytes == 3 * 64 * 5000
    assert len(pair.sent) == 0 and not pair.posted, "nine slices, two of them twice"
    pair.assert_clean()


def test_a_damaged_slice_is_pushed_again_and_only_that_one() -> None:
    pair, request = Pair(), submitted()
    pair.flip = {1}
    pair.start(request)
    pair.run()
    assert pair.admitted == [request.key] and pair.done[0].resent == 1
    pair.assert_clean()


def test_damage_without_end_leaves_the_request_where_its_prompt_lies() -> None:
    pair, request = Pair(), submitted()
    pair.start(request)
    while moves := pair.moves():
        pair.flip = {2}
        moves[0]()
    assert pair.admitted == [] and pair.local == [request.key]
    assert pair.allocator.used_blocks == 0
    pair.assert_clean()


def test_a_request_that_ends_with_its_first_token_releases_the_reservation() -> None:
    pair, request = Pair(), submitted()
    pair.start(request, last=True)
    pair.run()
    assert pair.admitted == [] and [f.failure for f in pair.forgotten] == [None]
    assert pair.allocator.used_blocks == 0
    pair.assert_clean()


def test_grants_are_first_come_first_served_and_wait_for_blocks() -> None:
    pair = Pair(blocks=4)
    first, big, small = submitted("a", 40), submitted("b", 40), submitted("c", 10)
    for request in (first, big, small):
        pair.start(request)
    pair.run()
    assert pair.admitted == [first.key], "b waits for blocks, and c does not overtake it"
    pair.allocator.release(first.key)
    pair.feed_token(h.Ticked())
    pair.run()
    assert pair.admitted == [first.key, big.key, small.key]
    pair.assert_clean()


def test_a_grant_counts_how_much_the_decodes_here_are_expected_to_grow() -> None:
    pair, request = Pair(blocks=10), submitted(tokens=40, max_tokens=100)
    pair.answers.mean_tokens = 30.0
    pair.growing = 6  # three blocks now, five at its end
    pair.start(request)
    pair.run()
    assert pair.admitted == [] and pair.allocator.used_blocks == 0
    pair.growing = 5
    pair.feed_token(h.Ticked())
    pair.run()
    assert pair.admitted == [request.key]
    pair.assert_clean()


def test_what_was_granted_before_counts_with_what_it_will_need() -> None:
    pair = Pair(blocks=9)
    pair.answers.mean_tokens = 30.0
    first, second = submitted("a", 40, max_tokens=100), submitted("b", 40, max_tokens=100)
    pair.start(first)
    pair.start(second)
    pair.deliver_to_token()
    pair.deliver_to_token()
    assert pair.allocator.owned(first.key) and not pair.allocator.owned(second.key), "3 + 2 and then 3 + 2 of 9"
    pair.run()
    assert pair.admitted == [first.key, second.key], "a decodes, and is not counted here any more"


def test_where_nothing_is_expected_a_prompt_that_fits_is_granted() -> None:
    pair, request = Pair(blocks=3), submitted(tokens=40, max_tokens=1000)
    pair.answers.mean_tokens = 500.0
    pair.start(request)
    pair.run()
    assert pair.admitted == [request.key], "it would never be, if its growth had to fit"


def test_whoever_has_to_stand_back_is_granted_nothing() -> None:
    pair, request = Pair(), submitted(tokens=40)
    pair.admits = False
    pair.start(request)
    pair.run()
    assert pair.prompt.waits_for_room and pair.admitted == []
    pair.admits = True
    pair.feed_token(h.Ticked())
    pair.run()
    assert pair.admitted == [request.key] and not pair.prompt.waits_for_room


def test_without_a_grant_the_request_decodes_where_its_prompt_lies() -> None:
    pair, request = Pair(blocks=4), submitted(tokens=40)
    assert pair.allocator.reach(submitted("other").key, 20)
    pair.start(request)
    pair.run()
    pair.now += h.GRANT_WAIT_S + 0.1
    pair.feed_prompt(h.Ticked())
    pair.run()
    assert pair.local == [request.key] and pair.admitted == []
    pair.assert_clean()


def test_what_can_never_fit_is_refused() -> None:
    pair, request = Pair(blocks=2), submitted(tokens=40)
    pair.start(request)
    pair.run()
    assert pair.local == [request.key]
    pair.assert_clean()


def test_a_transfer_that_stands_still_is_given_up() -> None:
    pair, request = Pair(), submitted()
    pair.start(request)
    pair.run_without_arrivals()
    pair.now += h.transfer_deadline_s(10_000) + 0.1
    pair.feed_token(h.Ticked())
    assert pair.closed and pair.allocator.used_blocks == 0
    pair.run_without_arrivals()
    assert pair.local == [request.key]


def test_a_grant_that_nobody_uses_expires() -> None:
    pair, request = Pair(), submitted()
    pair.start(request)
    pair.deliver_to_token()
    assert pair.allocator.used_blocks == 2
    pair.now += h.IDLE_S - 1.0
    pair.feed_token(h.Ticked())
    assert pair.allocator.used_blocks == 2
    pair.now += 2.0
    pair.feed_token(h.Ticked())
    assert pair.allocator.used_blocks == 0 and not len(pair.token)


def test_a_prompt_worker_that_hears_nothing_after_its_push_goes_on_itself() -> None:
    pair, request = Pair(), submitted()
    pair.start(request)
    pair.run_without_arrivals()
    pair.now += 2 * h.transfer_deadline_s(10_000) + 0.1
    pair.feed_prompt(h.Ticked())
    assert pair.local == [request.key] and not len(pair.prompt)
    pair.run()
    assert pair.admitted == [] and pair.allocator.used_blocks == 0
    pair.assert_clean()


def test_a_dead_token_worker_is_reported_to_the_gateway() -> None:
    pair, request = Pair(), submitted()
    pair.start(request)
    pair.feed_prompt(h.PeerGone(peer=T))
    assert [f.failure for f in pair.forgotten] == ["the token worker is gone"]
    assert not len(pair.prompt)


def test_a_dead_prompt_worker_gives_the_blocks_back() -> None:
    pair, request = Pair(), submitted()
    pair.start(request)
    pair.deliver_to_token()
    assert pair.allocator.used_blocks == 2
    pair.feed_token(h.PeerGone(peer=P))
    assert pair.allocator.used_blocks == 0 and pair.closed


def test_who_stood_still_while_it_was_taken_for_lost_hears_of_the_end() -> None:
    """Its grant comes late, over a new connection: it must not hold blocks for a prompt that is gone."""
    pair, request = Pair(), submitted()
    pair.start(request)
    pair.feed_prompt(h.PeerGone(peer=T))
    pair.run()
    assert pair.allocator.used_blocks == 0 and pair.admitted == []
    pair.assert_clean()


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_any_interleaving_with_cancels_ends_clean(data: st.DataObject) -> None:
    """Three requests, any order of steps, cancels on either side at any moment, damage at any moment.

    At the end nothing is owned that nobody decodes, and no posted receive waits for ever.
    """
    pair = Pair(blocks=data.draw(st.sampled_from([3, 6, 100])))
    requests = [submitted(name, tokens) for name, tokens in (("a", 20), ("b", 40), ("c", 5))]
    modes = data.draw(st.lists(st.sampled_from(PushMode), min_size=3, max_size=3))
    for request, mode in zip(requests, modes, strict=True):
        pair.start(request, mode)
    cancelled = set()
    for _ in range(200):
        moves = pair.moves()
        if not moves:
            break
        what = data.draw(st.integers(0, 12))
        victim = requests[data.draw(st.integers(0, 2))].key
        if what == 0:
            pair.feed_prompt(h.Cancelled(key=victim))
            cancelled.add(victim)
        elif what == 1 and victim not in pair.admitted:
            pair.feed_token(h.Cancelled(key=victim))
            cancelled.add(victim)
        elif what == 2:
            pair.flip = {data.draw(st.integers(0, 2))}
        else:
            moves[data.draw(st.integers(0, len(moves) - 1))]()
    for _ in range(4):  # decodes end, waiting grants get their blocks, what cannot be granted goes on locally
        pair.run()
        for key in pair.admitted:
            pair.allocator.release(key)
        pair.now += 200.0
        pair.feed_token(h.Ticked())
        pair.feed_prompt(h.Ticked())
    pair.run()
    assert len(pair.admitted) == len(set(pair.admitted)), "admitted twice"
    assert pair.allocator.used_blocks == 0
    pair.assert_clean()
    for request in requests:
        ended = request.key in pair.admitted or request.key in pair.local or request.key in cancelled
        assert ended, "a request vanished"
