from __future__ import annotations

import random

import pytest

from genpool.broker.outbox import Outbox
from genpool.protocol.messages import Busy, Drain, Message, Missing, Reset, Status


def news(number: int) -> Status:
    return Status({"number": number})


@pytest.mark.parametrize("seed", range(20))
def test_messages_go_in_order_however_many_of_those_that_are_tried_come_back(seed: int) -> None:
    choices = random.Random(seed)
    outbox, waiting = Outbox(), list[Message]()
    for number in range(2000):
        message = choices.choice([Busy([], number), Busy([], number), news(number), Reset(str(number))])
        outbox.put_off(message)
        kept = [one for one in waiting if type(one) is type(message)]
        if isinstance(message, Status):  # of which the last one counts
            waiting = [*(one for one in waiting if one not in kept), message]
        elif not (isinstance(message, Reset) and kept):  # of which the first one does
            waiting.append(message)
        if choices.random() < 0.02:
            tried = outbox.take()
            gone = choices.choice([0, 0, len(tried), choices.randrange(len(tried) + 1)])
            assert tried == waiting[: len(tried)]
            del waiting[:gone]
            for back in tried[gone:]:
                outbox.put_back(back)
        assert len(outbox) == len(waiting)
    assert list(outbox) == waiting == outbox.take_all()
    assert not outbox


def test_what_comes_back_goes_before_what_was_put_off_meanwhile_and_does_not_replace_newer_news() -> None:
    outbox = Outbox()
    for message in (news(1), Reset("first"), Busy([], 1), Drain("go")):
        outbox.put_off(message)
    tried = outbox.take()
    for message in (Missing([]), news(2), Reset("second")):
        outbox.put_off(message)
    for message in tried:
        outbox.put_back(message)
    assert list(outbox) == [Reset("first"), Busy([], 1), Drain("go"), Missing([]), news(2)]


def test_few_are_tried_where_some_come_back_and_more_and_more_where_all_go() -> None:
    outbox = Outbox()
    for number in range(99_000):
        outbox.put_off(Busy([], number))
    assert [len(outbox.take()) for _ in range(4)] == [128, 256, 512, 1024]
    outbox.put_back(Busy([], 0))
    assert len(outbox.take()) == 64
