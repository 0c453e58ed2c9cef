"""What every worker speaks: a line of JSON in, a line out. Standard library only: it runs in each engine's environment.

A worker is started with one argument, its settings as JSON, and says {"versions": ...} once it is ready. A line
{"workload": name, "jobs": [[ids, max_tokens], ...]} is answered with {"seconds": s, "tokens": [ids, ...]}. A line
{"workload": name, "tune": [jobs, jobs]} runs them with each of the engine's choices, keeps the fastest for that
workload, and is answered with {"chosen": text, "tried": {text: seconds}}; the first jobs only warm up, unless they are
the faster. With a single choice, or "choice": text beside it, two of them are run, to warm up.
"""

import json
import os
import sys
import time
from abc import ABC, abstractmethod
from importlib.metadata import version

WARM_UP = 2  # jobs, where there is nothing to choose


class Engine(ABC):
    """One engine with its model loaded. What can be set is written as a text, such as "flash attention"."""

    def about(self):
        """What the report should tell beside the versions."""
        return {}

    def choices(self, _workload):
        """The settings to try for a workload; the plain engine has one."""
        return ("default",)

    def prepare(self, _choice, _jobs):
        """Whatever need not be timed, such as a context. Called before every run; there may be nothing to do."""
        return

    @abstractmethod
    def run(self, jobs):
        """The new tokens of each of `jobs`, (ids, max_tokens) each: greedy, and none ends before its number."""


def serve(open_engine, *distributions):
    """Answer every line that comes; what a library prints goes to stderr."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)

    def answer(**fields):
        print(json.dumps(fields), file=answers, flush=True)

    engine = open_engine(json.loads(sys.argv[1]))
    answer(versions={name: version(name) for name in distributions} | engine.about())
    chosen = {}
    for line in sys.stdin:
        asked = json.loads(line)
        workload = asked["workload"]
        if "tune" in asked:
            choices = [asked["choice"]] if "choice" in asked else engine.choices(workload)
            rounds = asked["tune"] if len(choices) > 1 else [asked["tune"][0][:WARM_UP]]
            tried = {choice: tune(engine, choice, rounds) for choice in choices}
            chosen[workload] = min(tried, key=tried.get)
            answer(chosen=chosen[workload], tried=tried)
        else:
            engine.prepare(chosen.get(workload) or engine.choices(workload)[0], asked["jobs"])
            seconds, tokens = timed(engine, asked["jobs"])
            answer(seconds=seconds, tokens=tokens)


def tune(engine, choice, rounds):
    """The least seconds of some rounds, which are of the same lengths."""
    engine.prepare(choice, rounds[0])
    return min(timed(engine, jobs)[0] for jobs in rounds)


def timed(engine, jobs):
    begin = time.perf_counter()
    tokens = engine.run(jobs)
    return time.perf_counter() - begin, tokens
