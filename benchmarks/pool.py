"""What sharing a product's units costs on 2, 16 and 64 cores: a simulation of the pool in csrc/core/pool.cpp.

No machine with so many cores was at hand. Simulated are the words that threads write to: an access costs `--local` ns
where the same core had the word last and `--transfer` ns where another had it, and accesses to one word wait for each
other. Units take as long as their bytes at an even share of `--bandwidth`, and vary by `--spread`. Threads notice a job
one transfer after it was published, those of a group one after the other.

Compared: the pool as it is (a counter for each of at most 8 groups of threads, what is done counted once a thread), and
one counter and one count for all units. Printed is how many times the ideal (bytes over bandwidth) a product takes.
"""

import argparse
import heapq
import random
from collections import defaultdict
from collections.abc import Sequence

UNITS_PER_THREAD = 3
MAX_GROUPS = 8
MATRICES = {
    "0.55 MB (SmolLM2, down, int4)": 0.55e6,
    "8.9 MB (Qwen2-0.5B, gate and up, int8)": 8.9e6,
    "60 MB (8B, down, int8)": 60e6,
}


class Words:
    """Words in memory: who had one last, and until when it is busy."""

    def __init__(self, local: float, transfer: float) -> None:
        self.local, self.transfer = local, transfer
        self.owner: dict[object, int] = {}
        self.busy: dict[object, float] = defaultdict(float)

    def write(self, word: object, thread: int, now: float) -> float:
        """When a thread that begins at `now` has changed the word."""
        cost = self.local if self.owner.get(word) == thread else self.transfer
        self.owner[word] = thread
        self.busy[word] = max(now, self.busy[word]) + cost
        return self.busy[word]


def simulate(threads: int, num_groups: int, seconds: float, spread: float, words: Words, seed: int) -> float:
    """ns from the caller's publishing to its return, for a job whose units take `seconds` of all threads."""
    generator = random.Random(seed)
    num_units = threads * UNITS_PER_THREAD
    each = seconds * 1e9 / UNITS_PER_THREAD
    ends = [num_units * (group + 1) // num_groups for group in range(num_groups)]
    heads = [num_units * group // num_groups for group in range(num_groups)]
    now = 0.0
    for group in range(num_groups):
        now = words.write(("claim", group), 0, now)
    seen = [now if thread == 0 else now + words.transfer * (1 + thread // num_groups) for thread in range(threads)]
    queue = [(seen[thread], thread, 0) for thread in range(threads)]
    heapq.heapify(queue)
    end = 0.0
    while queue:
        at, thread, looked = heapq.heappop(queue)
        group = (thread + looked) % num_groups
        if looked == num_groups:
            if num_groups > 1:
                at = words.write(("done", thread % num_groups), thread, at)
            end = max(end, at)
            continue
        if heads[group] >= ends[group]:
            heapq.heappush(queue, (at + words.local, thread, looked + 1))
            continue
        heads[group] += 1
        at = words.write(("claim", group), thread, at) + each * generator.uniform(1 - spread, 1 + spread)
        if num_groups == 1:
            at = words.write("done", thread, at)
        heapq.heappush(queue, (at, thread, looked))
    return end + words.transfer * num_groups  # the caller looks at every count


def ratios(args: argparse.Namespace, threads: int, num_groups: int, num_bytes: float) -> Sequence[float]:
    ideal = num_bytes / (args.bandwidth * 1e9 * threads)
    runs = []
    for seed in range(args.runs):
        words = Words(args.local, args.transfer)
        runs.append(simulate(threads, num_groups, ideal, args.spread, words, seed) / (ideal * 1e9))
    return sorted(runs)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--local", type=float, default=8.0, help="ns of an access to a word that the core has")
    parser.add_argument("--transfer", type=float, default=100.0, help="ns of one to a word that another core has")
    parser.add_argument("--bandwidth", type=float, default=6.0, help="GB/s for each core")
    parser.add_argument("--spread", type=float, default=0.1, help="how much units differ, of their time")
    parser.add_argument("--runs", type=int, default=50)
    args = parser.parse_args()
    print("| matrix | cores | groups | one counter |\n| --- | --- | --- | --- |")
    for name, num_bytes in MATRICES.items():
        for threads in (2, 16, 64):
            ours = ratios(args, threads, min(threads, MAX_GROUPS), num_bytes)
            single = ratios(args, threads, 1, num_bytes)
            print(f"| {name} | {threads} | {ours[len(ours) // 2]:.2f} | {single[len(single) // 2]:.2f} |")


if __name__ == "__main__":
    main()
