"""An LLMEngine whose text is known in advance: what the command line is tested with where no model is needed.

A token is a character. As a script it is `octavo` over this engine: `python fake_engine.py generate ...`.
"""

import os
import signal
import sys
import time
from types import SimpleNamespace
from typing import Any, ClassVar

from octavo.engine.phase_timer import PhaseTimer
from octavo.errors import EngineError, QueueFullError, RequestError
from octavo.outputs import CompletionOutput, Logprob, RequestMetrics, RequestOutput
from octavo.params import SamplingParams


def reply(prompt: str, max_tokens: int) -> str:
    """The text for a prompt: itself in reverse, over and over where the prompt says "endless"."""
    text = prompt[::-1] or "?"
    return (text * max_tokens if "endless" in prompt else text)[:max_tokens]


class FakeEngine:
    """One character a step for each of `max_num_seqs` requests; `FAKE_DELAY` seconds a step.

    A prompt with "refuse" in it is refused, one with "break" fails at its second token. Every instance is in `made`.
    """

    made: ClassVar[list["FakeEngine"]] = []

    def __init__(self, config: Any, *, progress: bool = False) -> None:
        self.config = config
        self.longest = config.model_config.max_model_len or 4096
        limits = SimpleNamespace(max_model_len=self.longest, max_num_seqs=config.scheduler_config.max_num_seqs)
        self.resolved = SimpleNamespace(limits=limits, describe=lambda: "fake on cpu")
        self.engine = SimpleNamespace(timer=PhaseTimer())
        self.profile = self.engine.timer.profile
        self.template_text = None if "no-template" in config.model_config.model else object()
        self.live: dict[str, dict[str, Any]] = {}
        self.aborted: list[RequestOutput] = []
        self.requests: list[tuple[Any, SamplingParams]] = []
        self.conversations: list[list[dict[str, str]]] = []
        self.most_live = self.num_steps = 0
        self.delay = float(os.environ.get("FAKE_DELAY", "0"))
        FakeEngine.made.append(self)

    def add_request(self, prompt: Any, params: SamplingParams) -> str:
        text = prompt if isinstance(prompt, str) else "".join(map(chr, prompt))
        if not text or "refuse" in text:
            raise RequestError(f"prompt: {text!r} is refused", "prompt")
        queued = self.config.scheduler_config.max_queued_requests
        if queued is not None and len(self.live) >= queued:
            raise QueueFullError("the queue is full")
        resolved = params.resolved({})
        room = self.longest - len(text)
        max_tokens = room if resolved.max_tokens is None else resolved.max_tokens
        if room < 1 or max_tokens > room:
            raise RequestError(f"prompt: has {len(text)} tokens, too many for {self.longest}", "prompt")
        self.requests.append((prompt, params))
        request_id = f"request-{len(self.requests)}"
        whole = reply(text.rpartition("user:")[2], max_tokens)
        self.live[request_id] = {"prompt": prompt, "text": text, "whole": whole, "params": resolved, "num": 0}
        self.most_live = max(self.most_live, len(self.live))
        return request_id

    def step(self) -> list[RequestOutput]:
        time.sleep(self.delay)
        self.num_steps += 1
        outputs, self.aborted = self.aborted, []
        with self.engine.timer.phase("run"):
            for request_id in list(self.live)[: self.config.scheduler_config.max_num_seqs]:
                live = self.live[request_id]
                live["num"] += 1
                reason = "stop" if live["num"] >= len(live["whole"]) else None
                reason = "error" if "break" in live["text"] and live["num"] == 2 else reason
                outputs.append(self._output(request_id, reason))
                if reason is not None:
                    del self.live[request_id]
        return outputs

    def abort_request(self, request_id: str) -> None:
        if request_id in self.live:
            self.aborted.append(self._output(request_id, "abort"))
            del self.live[request_id]

    def discard_request(self, request_id: str) -> None:
        self.live.pop(request_id, None)

    def has_unfinished_requests(self) -> bool:
        return bool(self.live or self.aborted)

    def render_chat(self, messages: Any, *, tools: Any = None, chat_template_kwargs: Any = None) -> list[int]:
        self.conversations.append([dict(message) for message in messages])
        return [ord(char) for char in "".join(f"{message['role']}:{message['content']}" for message in messages)]

    def get_stats(self) -> dict[str, Any]:
        return {"steps": self.num_steps}

    def _output(self, request_id: str, reason: Any) -> RequestOutput:
        live = self.live[request_id]
        text = live["whole"][: live["num"]]
        logprobs = None if live["params"].logprobs is None else [{ord(c): Logprob(-0.5, 1, c)} for c in text]
        completion = CompletionOutput(
            index=0,
            text=text,
            token_ids=[ord(char) for char in text],
            cumulative_logprob=-0.5 * len(text),
            logprobs=logprobs,
            finish_reason=reason,
            error=EngineError("it broke") if reason == "error" else None,
        )
        return RequestOutput(
            request_id=request_id,
            prompt=live["prompt"] if isinstance(live["prompt"], str) else None,
            prompt_token_ids=[ord(char) for char in live["text"]],
            prompt_logprobs=None,
            outputs=[completion],
            finished=reason is not None,
            metrics=RequestMetrics(0.0, time_to_first_token=0.1, time_per_output_token=0.01, e2e=0.2),
            seed=7 if live["params"].seed is None else live["params"].seed,
        )


if __name__ == "__main__":
    from octavo import llm_engine
    from octavo.cli.main import main

    signal.signal(signal.SIGINT, signal.default_int_handler)  # a test runner's background job may ignore it
    llm_engine.LLMEngine = FakeEngine  # type: ignore[assignment, misc]
    sys.exit(main())
