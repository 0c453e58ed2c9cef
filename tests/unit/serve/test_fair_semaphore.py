"""serve.fair_semaphore: clients acquire in turns, and no slot is lost when a waiter is cancelled."""

import asyncio
import random

from octavo.serve.fair_semaphore import FairSemaphore


def test_clients_take_turns():
    async def scene() -> list[str]:
        semaphore, order = FairSemaphore(1), []

        async def work(client: str) -> None:
            async with semaphore.acquire(client):
                order.append(client)
                await asyncio.sleep(0)

        tasks = [asyncio.create_task(work(client)) for client in "aaaaaabb"]
        await asyncio.gather(*tasks)
        return order

    assert "".join(asyncio.run(scene())) == "aababaaa"


def test_never_more_than_there_are_and_none_lost_when_some_leave():
    async def scene(seed: int) -> None:
        rng, semaphore = random.Random(seed), FairSemaphore(3)
        inside = most = 0

        async def work(client: str) -> None:
            nonlocal inside, most
            async with semaphore.acquire(client):
                inside += 1
                most = max(most, inside)
                try:
                    for _ in range(rng.randrange(4)):
                        await asyncio.sleep(0)
                finally:
                    inside -= 1

        tasks = [asyncio.create_task(work(rng.choice("abc"))) for _ in range(60)]
        for task in rng.sample(tasks, 30):
            await asyncio.sleep(0)
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        assert (inside, most) == (0, 3)
        assert semaphore._num_free == 3
        assert not semaphore._waiting

    for seed in range(50):
        asyncio.run(scene(seed))
