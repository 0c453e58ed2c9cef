"""`octavo serve` in a process of its own, and the official `openai` client of it."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from openai import OpenAI

KEY = "sk-test-key"
STORY = "Once upon a time, the quick brown fox"
CHAT = [{"role": "user", "content": "Hello, fox!"}]


class OpenAIServer:
    """A process of `octavo serve`, and how to talk to it."""

    def __init__(self, process: subprocess.Popen[bytes], url: str) -> None:
        self.process, self.url = process, url
        self.http = httpx.Client(base_url=url, headers={"authorization": f"Bearer {KEY}"}, timeout=60)
        self.client = self.openai()

    @cached_property
    def model(self) -> str:
        return self.client.models.list().data[0].id

    def openai(self, **options: Any) -> OpenAI:
        return OpenAI(base_url=f"{self.url}/v1", **{"api_key": KEY, "max_retries": 0, "timeout": 60} | options)

    def metric(self, name: str) -> float:
        found = re.search(rf"^octavo_{name} (\S+)$", self.http.get("/metrics").text, re.MULTILINE)
        assert found is not None, name
        return float(found[1])

    def wait_until(self, seconds: float = 5.0, **metrics: float) -> None:
        """Until these metrics have these values."""
        deadline = time.monotonic() + seconds
        while (found := {name: self.metric(name) for name in metrics}) != metrics:
            assert time.monotonic() < deadline, found
            time.sleep(0.02)

    def lines(self, path: str, body: dict[str, Any]) -> list[str]:
        """The raw lines of a stream that hold something."""
        with self.http.stream("POST", path, json=body | {"model": self.model, "stream": True}) as response:
            assert response.status_code == 200, response.read()
            assert response.headers["content-type"].startswith("text/event-stream")
            return [line for line in response.iter_lines() if line]

    def chunks(self, path: str, body: dict[str, Any]) -> list[dict[str, Any]]:
        lines = self.lines(path, body)
        assert lines[-1] == "data: [DONE]"
        assert all(line.startswith("data: {") for line in lines[:-1])
        return [json.loads(line.removeprefix("data: ")) for line in lines[:-1]]


@contextmanager
def running(model: Path, log: Path, *flags: str, says: str = r"Serving .* at") -> Iterator[OpenAIServer]:
    """A server that has said that it is there. Ends with SIGTERM, on which the server has to end well."""
    command = [sys.executable, "-m", "octavo", "serve", str(model), "--port", "0", "--device", "cpu", *flags]
    with log.open("wb") as file:
        process = subprocess.Popen(command, stderr=file, env=os.environ | {"OCTAVO_API_KEY": KEY})
    server = None
    try:
        deadline = time.monotonic() + 90
        while not (found := re.search(rf"^{says} (http://[0-9.]+:\d+)", log.read_text(), re.MULTILINE)):
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.05)
        server = OpenAIServer(process, found[1])
        yield server
        server.wait_until(requests_running=0, requests_waiting=0)
    finally:
        if server is not None:
            server.http.close()
            server.client.close()
        process.send_signal(signal.SIGTERM)
        try:
            code = process.wait(timeout=60)
        finally:
            process.kill()
    assert code == 0, log.read_text()
    assert "Traceback" not in log.read_text()


def greedy(**options: Any) -> Any:
    """The arguments of a request that always gets the same answer of 16 tokens."""
    extra = {"ignore_eos": True, "return_token_ids": True} | options.pop("extra_body", {})
    return {"temperature": 0, "max_tokens": 16, "extra_body": extra} | options


def complete(server: OpenAIServer, prompt: Any = STORY, **options: Any) -> Any:
    return server.client.completions.create(model=server.model, prompt=prompt, **options)


def chat(server: OpenAIServer, messages: Any = CHAT, **options: Any) -> Any:
    return server.client.chat.completions.create(model=server.model, messages=messages, **options)


def refused(call: Any, kind: type[openai.APIStatusError], status: int, param: str | None, code: str | None) -> str:
    with pytest.raises(kind) as caught:
        call()
    error = caught.value
    assert (error.status_code, error.param, error.code) == (status, param, code), error
    assert isinstance(error.body, dict)
    assert set(error.body) == {"message", "type", "param", "code"}
    return str(error.body["message"])
