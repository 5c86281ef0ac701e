import asyncio

import pytest

from aula.core.clock import FakeClock
from aula.core.errors import OverloadError
from aula.servers.pages.feeds import Feed, Feeds, event


def test_a_client_that_does_not_read_loses_the_oldest_and_is_told_how_many() -> None:
    feed = Feed(most=2)
    for number in range(5):
        feed.put("turn", number)
    assert feed.take() == [("lost", 3), ("turn", 3), ("turn", 4)]
    assert feed.take() == []


def test_the_latest_of_its_kind_replaces_what_still_waits() -> None:
    feed = Feed()
    feed.put("board", 1, latest=True)
    feed.put("turn", 1)
    feed.put("board", 2, latest=True)
    assert feed.take() == [("turn", 1), ("board", 2)]


async def test_a_wait_ends_with_news_or_at_its_moment() -> None:
    clock, feed = FakeClock(), Feed()
    waiting = asyncio.ensure_future(feed.wait(clock, 5.0))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert not waiting.done()
    feed.put("turn", 1)
    assert await waiting is True
    feed.take()
    waiting = asyncio.ensure_future(feed.wait(clock, 5.0))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    clock.advance(5.0)
    assert await waiting is False


def test_only_so_many_may_watch() -> None:
    feeds = Feeds(most=1)
    feeds.enter()
    with pytest.raises(OverloadError, match="1 pages are watching") as caught:
        feeds.enter()
    assert caught.value.reason == "connections"
    feeds.leave()
    feeds.enter()


def test_an_event_is_one_line_of_data_whatever_it_holds() -> None:
    assert event("turn", {"text": "a\nb\r\n"}) == b'event: turn\ndata: {"text":"a\\nb\\r\\n"}\n\n'
