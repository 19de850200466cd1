"""A sequence's end and its positions."""

from shared.policy.sequence import Sequence
from shared.wire.terms import Finish, Sampling
from tests.support.samples import submitted


def test_finish_by_eos_stop_token_length_and_context() -> None:
    def end(token: int, eos: tuple[int, ...] = (9,), limit: int = 1000, **sampling: object) -> Finish | None:
        one = Sequence(
            request=submitted(tokens=4, sampling=Sampling(max_tokens=3, **sampling)),  # type: ignore[arg-type]
            arrived_at=0.0,
            token_worker=None,
        )
        one.tokens.append(token)
        return one.finish_after(token, eos, limit)

    assert end(1) is None
    assert end(9) is Finish.STOP
    assert end(9, ignore_eos=True) is None
    assert end(7, stop_token_ids=(7,)) is Finish.STOP
    assert end(1, limit=5) is Finish.LENGTH


def test_positions_and_limits_count_over_attempts() -> None:
    resumed = Sequence(
        request=submitted(tokens=10, emitted=3, max_tokens=5, attempt=2), arrived_at=0.0, token_worker=None
    )
    assert resumed.position == 3
    resumed.tokens.append(1)
    assert resumed.finish_after(1, (), 1000) is None and resumed.unsent() == (3, (1,))
    resumed.tokens.append(2)
    assert resumed.finish_after(2, (), 1000) is Finish.LENGTH
