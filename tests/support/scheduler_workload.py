"""Requests for the scheduler's harness: single ones, and random workloads on cramped engines."""

from collections import Counter
from random import Random

from octavo.engine.snapshots import stats_of
from octavo.errors import QueueFullError, RequestError
from tests.support.scheduler_harness import (
    CRASH,
    MODEL_LEN,
    SICK,
    STOP,
    VOCAB,
    CrashError,
    Harness,
    Setup,
    params_of,
)

NEVER_STOPS = params_of(ignore_eos=True)


def prompt_of(length: int, seed: int = 0) -> list[int]:
    rng = Random(seed)
    return [rng.randrange(2, VOCAB) for _ in range(length)]


def roomy(**fields) -> Setup:
    """An engine that has room for everything."""
    return Setup(**({"num_blocks": 4096, "model_len": 2048, "budget": 2048} | fields))


def lengths(plan) -> list[int]:
    return [len(row.token_ids) for row in plan.rows]


def ids(plan) -> list[str]:
    return [row.sequence_id.removesuffix("-0") for row in plan.rows]


PARAMS = [
    params_of(),
    params_of(ignore_eos=True),
    params_of(ignore_eos=True),
    params_of(prompt_logprobs=0, min_tokens=3),
    params_of(prompt_logprobs=0),
    params_of(min_tokens=4, stop_token_ids=[STOP, 7]),
    params_of(stop_token_ids=[STOP, 7, 8], repetition_penalty=1.5, presence_penalty=1.0),
]
REQUESTS_A_WORKLOAD = 100


class Workload:
    """Requests that arrive over time, share prefixes, are aborted, crash, and meet faults of the machine."""

    def __init__(self, seed: int, setup: Setup | None = None, *, has_faults: bool | None = None) -> None:
        self.rng = Random(seed)
        self.setup = setup or Setup.draw(self.rng)
        self.harness = Harness(self.setup)
        self.has_faults = self.rng.random() < 0.5 if has_faults is None else has_faults
        self.stems = [[self.rng.randrange(VOCAB) for _ in range(MODEL_LEN)] for _ in range(self.rng.choice([1, 3]))]
        self.seen: Counter[str] = Counter()
        self.bound = 0  # steps that the admitted requests may need

    def run(self, num_requests: int = REQUESTS_A_WORKLOAD) -> Counter[str]:
        rng, engine, num_left, num_steps = self.rng, self.harness.engine, num_requests, 0
        eagerness = rng.choice([0.5, 1.0, 5.0, num_requests])
        while num_left or engine.has_unfinished():
            for _ in range(min(num_left, int(eagerness + rng.random()))):
                self.ask()
                num_left -= 1
            if not engine.has_work():
                self.let_go(1.0)
            if not engine.has_work():
                continue
            num_steps += 1
            self.harness.step(self.fault())
            self.disturb()
            if rng.random() < 0.05:
                self.harness.check_conserved()
        assert self.seen["fault"] or self.seen["crash"] or num_steps <= self.bound
        stats = stats_of(engine)
        self.seen += Counter(
            requests=num_requests, steps=num_steps, preemptions=stats["preemptions"], hits=stats["prefix_hit_tokens"]
        )
        self.harness.check_at_rest()
        return self.seen

    def ask(self) -> None:
        rng = self.rng
        stem, length = rng.choice(self.stems), rng.choice([1, 3, 16, 17, 33, rng.randint(1, 60)])
        prompt = stem[: rng.choice([0, length, rng.randint(0, length)])]
        prompt += [rng.randrange(VOCAB) for _ in range(length - len(prompt))]
        if self.has_faults and rng.random() < 0.04:
            prompt[rng.randrange(length)] = rng.choice([CRASH, SICK])
        is_scored = rng.random() < 0.05
        max_tokens = 0 if is_scored else rng.choice([1, 8, rng.randint(1, 60)])
        num_blocks = -(-(length + max(max_tokens, 1) - 1) // self.setup.block_size)
        fits = length + max_tokens <= MODEL_LEN and num_blocks <= self.setup.num_blocks
        try:
            self.harness.ask(
                prompt,
                max_tokens,
                rng.choice(PARAMS[3:5] if is_scored else PARAMS),
                seed=rng.randrange(2**64),
                priority=rng.randrange(3),
                arrival_time=rng.random() if rng.random() < 0.1 else 1.0 + self.harness.engine.num_steps,
                cache_salt=rng.choice([None, None, None, "a"]),
                client=rng.choice([None, "a", "b"]),
                bad_words_ids=rng.choice([(), (), ((4,), (5, 6), (6, 5, 6))]),
                score_only=is_scored,
            )
        except QueueFullError:
            assert self.harness.scheduler.num_waiting >= self.setup.max_queued
            self.seen["queue full"] += 1
            return
        except RequestError:
            assert not fits
            self.seen["refused"] += 1
            return
        assert fits
        self.bound += length + max_tokens
        self.seen["crash"] += CRASH in prompt
        self.seen["sick"] += SICK in prompt
        self.seen["scored"] += is_scored

    def fault(self) -> BaseException | None:
        if not self.has_faults or self.rng.random() > 0.03:
            return None
        self.seen["fault"] += 1
        self.bound *= 2
        return self.rng.choice([CrashError("out of memory"), KeyboardInterrupt()])

    def disturb(self) -> None:
        """Between steps: an abort, a hold, a cache reset."""
        rng = self.rng
        if rng.random() < 0.08:
            answer = rng.choice(list(self.harness.answers.values()))
            self.seen["abort"] += not answer.sequence.status.is_finished()
            self.harness.abort(answer)
        if rng.random() < 0.05:
            held = rng.choice(list(self.harness.answers.values())).sequence
            self.seen["held"] += not held.status.is_finished()
            self.bound += MODEL_LEN  # it is computed again
            self.harness.engine.hold(held, is_held=True)
        self.let_go(0.1)
        if rng.random() < 0.01:
            self.harness.engine.reset_prefix_cache()

    def let_go(self, share: float) -> None:
        """Resume some of those that are held; a sequence that is not held does not mind."""
        scheduler = self.harness.scheduler
        assert scheduler.num_held == sum(s.is_held for s in scheduler.sequences.values())
        assert not any(s.is_held for s in scheduler.running)
        for answer in self.harness.answers.values() if scheduler.num_held else ():
            if self.rng.random() < share:
                self.harness.engine.hold(answer.sequence, is_held=False)


def soak(seeds: range) -> Counter[str]:
    seen: Counter[str] = Counter()
    for seed in seeds:
        try:
            seen += Workload(seed).run()
        except AssertionError as error:
            raise AssertionError(f"workload {seed}: {error}") from error
    return seen


def assert_all_happened(seen: Counter[str], num_requests: int) -> None:
    """The checks mean something only where these things really occurred."""
    assert seen["requests"] == num_requests
    assert min(seen["preemptions"] * 50, seen["hits"] * 2) >= num_requests, seen
    for what in ("abort", "held", "refused", "queue full", "crash", "sick", "fault", "scored"):
        assert seen[what] >= max(1, num_requests // 1000), (what, seen)
