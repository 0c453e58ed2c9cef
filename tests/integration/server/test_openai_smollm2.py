"""The `openai` client and SmolLM2: a conversation, clients that give up or come too early, and a full queue."""

import threading
import time
from pathlib import Path
from typing import Any

import openai
import pytest

from tests.support.openai_server import STORY, OpenAIServer, chat, complete, running


class TestSmolLM2:
    QUESTIONS = (
        ("What is the capital of France? Answer in one sentence.", "Paris"),
        ("And of Italy?", "Rome"),
        ("Which two cities did you name?", "Paris"),
    )

    def test_a_conversation(self, smollm2: OpenAIServer) -> None:
        messages: list[Any] = [{"role": "system", "content": "You are a helpful assistant."}]
        for question, expected in self.QUESTIONS:
            messages.append({"role": "user", "content": question})
            options = {"temperature": 0, "max_tokens": 60}
            answer = chat(smollm2, messages, **options)
            streamed = chat(smollm2, messages, stream=True, stream_options={"include_usage": True}, **options)
            parts = list(streamed)
            text = "".join(part.choices[0].delta.content or "" for part in parts if part.choices)
            assert text == answer.choices[0].message.content
            assert expected in text
            assert parts[-1].usage.total_tokens == answer.usage.total_tokens
            assert answer.choices[0].finish_reason in ("stop", "length")
            messages.append({"role": "assistant", "content": text})
        assert parts[-1].usage.prompt_tokens_details.cached_tokens > 0

    def test_a_client_that_gives_up_is_forgotten(self, smollm2: OpenAIServer) -> None:
        options = {"temperature": 1.0, "max_tokens": 4000, "extra_body": {"ignore_eos": True}}
        with smollm2.openai(timeout=0.5) as client:
            begun = time.monotonic()
            with pytest.raises(openai.APITimeoutError):
                client.completions.create(model=smollm2.model, prompt=STORY, **options)
            assert time.monotonic() - begun < 5
        smollm2.wait_until(seconds=1.0, requests_running=0, requests_waiting=0)
        stream = complete(smollm2, stream=True, **options)
        next(iter(stream))
        assert smollm2.metric("requests_running") == 1
        stream.close()
        smollm2.wait_until(seconds=1.0, requests_running=0, requests_waiting=0)

    def test_who_comes_too_early_is_told_when_to_come_back(self, smollm2_path: Path, tmp_path: Path) -> None:
        """The server listens before the model is loaded, and says when to come back."""
        with running(smollm2_path, tmp_path / "log", says="Listening on") as server:
            with pytest.raises(openai.InternalServerError) as caught:
                server.client.completions.create(model="any", prompt="Hi", max_tokens=1)
            assert (caught.value.status_code, caught.value.code) == (503, "starting")
            assert 1 <= int(caught.value.response.headers["retry-after"]) <= 60
            end = time.monotonic() + 60
            while server.http.get("/health/ready").status_code != 200:
                assert time.monotonic() < end
                time.sleep(0.02)
            assert complete(server, max_tokens=1).choices[0].finish_reason == "length"

    def test_a_full_queue_is_tried_again(self, smollm2: OpenAIServer) -> None:
        for _ in range(3):  # so that the server knows how fast it is
            complete(smollm2, max_tokens=1)
        options = {"max_tokens": 4000, "stream": True, "extra_body": {"ignore_eos": True}}
        streams = []
        for _ in range(2):
            streams.append(complete(smollm2, **options))
            next(iter(streams[-1]))
        waiting = threading.Thread(target=lambda: complete(smollm2, max_tokens=1))
        waiting.start()
        smollm2.wait_until(requests_running=2, requests_waiting=1)
        begun = time.monotonic()
        with pytest.raises(openai.RateLimitError) as caught:
            complete(smollm2, max_tokens=1)
        assert time.monotonic() - begun < 0.2
        assert caught.value.code == "queue_full"
        assert int(caught.value.response.headers["retry-after"]) >= 1
        timer = threading.Timer(0.3, lambda: [stream.close() for stream in streams])
        timer.start()
        with smollm2.openai(max_retries=3) as client:
            raw = client.completions.with_raw_response.create(model=smollm2.model, prompt="Hi", max_tokens=1)
        assert raw.retries_taken >= 1
        assert raw.parse().usage.completion_tokens == 1
        for thread in (waiting, timer):
            thread.join(30)
