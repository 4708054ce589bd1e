"""A resource that is replaced under its users."""

import asyncio

import pytest
from bareforge_runtime.replaceable import Replaceable


class Pool:
    """Notes whether it is open; its use after the end is what must not happen."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.closed = 0

    async def close(self) -> None:
        await asyncio.sleep(0)
        self.closed += 1


async def settle() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


async def test_a_user_keeps_what_it_began_with_and_the_next_one_gets_the_new_one() -> None:
    old, new = Pool("old"), Pool("new")
    pool = Replaceable(old, Pool.close)
    async with pool.use() as first:
        pool.replace(new)
        async with pool.use() as second:
            assert (first, second) == (old, new)
        await settle()
        assert old.closed == 0
    await settle()
    assert (old.closed, new.closed) == (1, 0)


async def test_what_nobody_uses_is_closed_at_once() -> None:
    old = Pool("old")
    pool = Replaceable(old, Pool.close)
    pool.replace(Pool("new"))
    await settle()
    assert old.closed == 1


async def test_each_of_several_replaced_ones_waits_for_its_own_users() -> None:
    pools = [Pool(str(number)) for number in range(3)]
    pool = Replaceable(pools[0], Pool.close)
    async with pool.use():
        pool.replace(pools[1])
        async with pool.use():
            pool.replace(pools[2])
        await settle()
        assert [pool.closed for pool in pools] == [0, 1, 0]
    await settle()
    assert [pool.closed for pool in pools] == [1, 1, 0]


async def test_a_user_that_fails_is_done_too() -> None:
    old = Pool("old")
    pool = Replaceable(old, Pool.close)

    async def fail() -> None:
        async with pool.use():
            pool.replace(Pool("new"))
            raise ValueError("mine")

    with pytest.raises(ValueError, match="mine"):
        await fail()
    await settle()
    assert old.closed == 1


async def test_a_cancelled_user_does_not_cancel_the_closing() -> None:
    old = Pool("old")
    pool = Replaceable(old, Pool.close)

    async def user() -> None:
        async with pool.use():
            await asyncio.sleep(60)

    task = asyncio.create_task(user())
    await settle()
    pool.replace(Pool("new"))
    task.cancel()
    await settle()
    assert old.closed == 1


async def test_the_end_closes_all_of_them_once() -> None:
    old, new = Pool("old"), Pool("new")
    pool = Replaceable(old, Pool.close)
    async with pool.use():
        pool.replace(new)
        await settle()
        await pool.close()
        assert (old.closed, new.closed) == (1, 1)
    await settle()
    assert (old.closed, new.closed) == (1, 1)


async def test_a_closing_that_fails_is_told_without_its_text(caplog: pytest.LogCaptureFixture) -> None:
    async def fail(_: Pool) -> None:
        raise OSError("postgresql://user:hidden@host")

    pool = Replaceable(Pool("old"), fail)
    pool.replace(Pool("new"))
    await settle()
    assert caplog.messages == ["closing what was replaced failed: OSError"]
