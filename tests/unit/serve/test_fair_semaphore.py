"""Places taken in turns: nobody waits for another's queue, and no place is lost when somebody leaves."""

import asyncio
import random

from octavo.serve.fair_semaphore import Turnstile


def test_clients_take_turns():
    async def scene() -> list[str]:
        turnstile, order = Turnstile(1), []

        async def work(client: str) -> None:
            async with turnstile.place(client):
                order.append(client)
                await asyncio.sleep(0)

        tasks = [asyncio.create_task(work(client)) for client in "aaaaaabb"]
        await asyncio.gather(*tasks)
        return order

    assert "".join(asyncio.run(scene())) == "aababaaa"


def test_never_more_than_there_are_and_none_lost_when_some_leave():
    async def scene(seed: int) -> None:
        rng, turnstile = random.Random(seed), Turnstile(3)
        inside = most = 0

        async def work(client: str) -> None:
            nonlocal inside, most
            async with turnstile.place(client):
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
        assert turnstile._num_free == 3
        assert not turnstile._waiting

    for seed in range(50):
        asyncio.run(scene(seed))
