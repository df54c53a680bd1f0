"""Items made ahead: the same, in order, no more of them than said, and none after the caller stops."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from worldline.annotate.decoder import made_ahead


@pytest.mark.parametrize("total", [0, 1, 3, 40])
@pytest.mark.parametrize("count", [1, 8])
def test_items_are_the_same_and_in_order(total: int, count: int) -> None:
    assert list(made_ahead(iter(range(total)), count=count)) == list(range(total))


def test_no_more_are_made_than_said_and_none_after_the_caller_stops() -> None:
    made: list[int] = []
    makers = set()

    def items() -> Iterator[int]:
        for k in range(100):
            makers.add(threading.get_ident())
            made.append(k)
            yield k

    ahead = made_ahead(items(), count=3)
    for k in range(10):
        assert next(ahead) == k
        assert len(made) <= k + 1 + 3
    ahead.close()
    assert len(made) <= 13
    assert len(makers) == 1
    assert threading.get_ident() not in makers


def test_an_error_comes_where_its_item_would_have() -> None:
    def items() -> Iterator[int]:
        yield 1
        raise OSError("disk is gone")

    ahead = made_ahead(items(), count=4)
    assert next(ahead) == 1
    with pytest.raises(OSError, match="disk is gone"):
        next(ahead)
