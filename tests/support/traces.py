"""Any trace that follows the rules, for property tests."""

from hypothesis import strategies as st

from loadgen.traces.trace import Request, Trace


@st.composite
def traces(draw: st.DrawFn) -> Trace:
    """Open requests, some with shared blocks, and users' next requests, some of which carry the chat on."""
    at_s = 0.0
    requests: list[Request] = []
    for number in range(draw(st.integers(1, 12))):
        at_s += draw(st.floats(0.0, 10.0))
        after = draw(st.none() | st.integers(0, number - 1)) if number else None
        carries = after is not None and draw(st.booleans())
        prompt_tokens = draw(st.integers(1, 3000))
        if after is not None and carries:
            prompt_tokens += requests[after].prompt_tokens + requests[after].output_tokens
        blocks = () if after is not None else tuple(draw(st.lists(st.integers(0, 9), max_size=5)))
        requests.append(
            Request(
                at_s=at_s,
                prompt_tokens=prompt_tokens,
                output_tokens=draw(st.integers(1, 500)),
                blocks=blocks,
                block_tokens=draw(st.sampled_from([1, 16, 512])) if blocks else 0,
                after=after,
                think_s=draw(st.floats(0.0, 5.0)) if after is not None else 0.0,
                carries=carries,
            )
        )
    trace = Trace(name="made", requests=tuple(requests))
    trace.check()
    return trace
