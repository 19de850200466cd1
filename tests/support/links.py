"""What tests of links send, and how they wait for what comes."""

import asyncio

import pytest

from shared.ids import RequestId
from shared.link.port import LinkEvent, Links
from shared.wire.messages import Cancel


def cancel(number: int) -> Cancel:
    return Cancel(request_id=RequestId("r"), attempt=number)


async def next_event(links: Links, within_s: float = 3.0) -> LinkEvent:
    async with asyncio.timeout(within_s):
        return await links.receive()


async def nothing_for(links: Links, seconds: float) -> None:
    with pytest.raises(TimeoutError):
        await next_event(links, within_s=seconds)
