"""One engine in a process of its own, which stands still while others work: between two answers it is stopped by a
signal, so that no thread of it spins. Knows the workers' protocol (workers/protocol.py), no engine.
"""

import json
import os
import signal
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

from benchmarks.workloads import Request

WORKERS = Path(__file__).with_name("workers")
PATIENCE = 60  # seconds for a process to end by itself


class PeerError(RuntimeError):
    """The process has ended, or its answer is not what was asked for."""


class Peer:
    """`name` is what tables call it; `python` runs `worker`, a file of WORKERS, with `settings`. It starts when it is
    first asked for something.
    """

    def __init__(self, name: str, python: str, worker: str, settings: Mapping[str, object]) -> None:
        self.name, self.settings = name, dict(settings)
        self._words = [python, str(WORKERS / worker), json.dumps(self.settings)]
        self._process: subprocess.Popen[str] | None = None
        self.versions: dict[str, str] = {}

    def __str__(self) -> str:
        return self.name

    def tune(self, workload: str, rounds: Sequence[Sequence[Request]], choice: str | None = None) -> dict[str, object]:
        """Warm up, and let the engine find its best settings for a workload: {"chosen", "tried": {text: seconds}}. With
        `choice`, what an earlier run chose, it only warms up.
        """
        given = {} if choice is None else {"choice": choice}
        return self._ask({"workload": workload, "tune": rounds} | given)

    def run(self, workload: str, requests: Sequence[Request]) -> tuple[float, list[list[int]]]:
        """(seconds, the new tokens of each request). Raises PeerError where a request got another number of them."""
        answer = self._ask({"workload": workload, "jobs": requests})
        tokens = answer["tokens"]
        if [len(row) for row in tokens] != [length for _, length in requests]:
            raise PeerError(f"{self} gave {[len(row) for row in tokens]} tokens")
        return answer["seconds"], tokens

    def close(self) -> None:
        """End the process, if it has been started."""
        if self._process is None:
            return
        self._signal(signal.SIGCONT)
        self._process.stdin.close()
        try:
            self._process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            self._signal(signal.SIGKILL)
            self._process.wait()
        self._process.stdout.close()

    def _ask(self, question: Mapping[str, object]) -> dict:
        if self._process is None:
            self._start()
        self._signal(signal.SIGCONT)
        try:
            self._process.stdin.write(json.dumps(question) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            raise self._ended() from None
        answer = self._answer()
        self._signal(signal.SIGSTOP)
        return answer

    def _start(self) -> None:
        """In a process group of its own, which the kernel wakes and hangs up should this process vanish."""
        threads = {"OMP_NUM_THREADS": str(self.settings["threads"])}
        self._process = subprocess.Popen(
            self._words,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | threads,
            process_group=0,
        )
        self.versions = self._answer()["versions"]

    def _answer(self) -> dict:
        line = self._process.stdout.readline()
        if not line:
            raise self._ended()
        return json.loads(line)

    def _ended(self) -> PeerError:
        return PeerError(f"{self} has ended with {self._process.wait()}; what it said stands above")

    def _signal(self, number: int) -> None:
        if self._process.poll() is None:
            os.killpg(self._process.pid, number)
