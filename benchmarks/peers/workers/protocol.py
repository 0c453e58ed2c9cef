"""What every worker speaks: a line of JSON in, a line out. Standard library only: it runs in each engine's environment.

A worker is started with one argument, its settings as JSON, and says {"versions": ...} once it is ready. A line
{"workload": name, "jobs": [[ids, max_tokens], ...]} is answered with {"seconds": s, "tokens": [ids, ...]}. A line
{"workload": name, "tune": jobs} runs them with each of the engine's choices, keeps the fastest for that workload, and
is answered with {"chosen": text, "tried": {text: seconds}}.
"""

import json
import os
import sys
import time
from importlib.metadata import version

TUNING_ROUNDS = 2  # of which the faster counts: the first one warms up


class Engine:
    """One engine with its model loaded. What can be set is written as a text, such as "flash attention"."""

    def choices(self, workload):
        """The settings to try for a workload; the plain engine has one."""
        return ("default",)

    def prepare(self, workload, choice, jobs):
        """Whatever need not be timed: a context, a cache. Called again whenever workload or choice changes."""

    def run(self, jobs):
        """The new tokens of each of `jobs`, (ids, max_tokens) each: greedy, and none ends before its number."""
        raise NotImplementedError


def serve(open_engine, *distributions):
    """Answer every line that comes; what a library prints goes to stderr."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)

    def answer(**fields):
        print(json.dumps(fields), file=answers, flush=True)

    engine = open_engine(json.loads(sys.argv[1]))
    answer(versions={name: version(name) for name in distributions})
    chosen = {}
    for line in sys.stdin:
        asked = json.loads(line)
        workload = asked["workload"]
        if "tune" in asked:
            tried = {choice: tune(engine, workload, choice, asked["tune"]) for choice in engine.choices(workload)}
            chosen[workload] = min(tried, key=tried.get)
            answer(chosen=chosen[workload], tried=tried)
        else:
            engine.prepare(workload, chosen.get(workload) or engine.choices(workload)[0], asked["jobs"])
            seconds, tokens = timed(engine, asked["jobs"])
            answer(seconds=seconds, tokens=tokens)


def tune(engine, workload, choice, jobs):
    engine.prepare(workload, choice, jobs)
    return min(timed(engine, jobs)[0] for _ in range(TUNING_ROUNDS))


def timed(engine, jobs):
    begin = time.perf_counter()
    tokens = engine.run(jobs)
    return time.perf_counter() - begin, tokens
