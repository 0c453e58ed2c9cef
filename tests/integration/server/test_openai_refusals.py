"""The `openai` client: which of its exceptions each refusal becomes, and what has no effect is said."""

from typing import Any

import httpx
import openai
import pytest

from tests.support.openai_server import CHAT, KEY, OpenAIServer, chat, complete, greedy, refused


class TestRefusals:
    @pytest.mark.parametrize(
        ("options", "param", "code"),
        [
            ({"temperature": -1}, "temperature", None),
            ({"top_p": 0}, "top_p", None),
            ({"n": 1000000}, "n", None),
            ({"max_tokens": "many"}, "max_tokens", None),
            ({"stop": ["x"] * 1000}, "stop", None),
            ({"seed": "x"}, "seed", None),
            ({"top_logprobs": 3}, "top_logprobs", None),
            ({"logprobs": True, "top_logprobs": 50}, "top_logprobs", None),
            ({"extra_body": {"colour": "red"}}, "colour", "unknown_parameter"),
            ({"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": {}}}},
             "response_format", "unsupported"),
            ({"response_format": {"type": "json_object"}}, "response_format", "unsupported"),
            ({"tools": [{"type": "function", "function": {"name": "f", "parameters": {}}}]}, "tools", "unsupported"),
            ({"tool_choice": "required"}, "tool_choice", "unsupported"),
            ({"messages": []}, "messages", None),
            ({"messages": [{"role": "user"}]}, "messages", None),
            ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]},
             "messages", "unsupported"),
            ({"messages": [{"role": "user", "content": "word " * 9000}]}, "messages", "context_length_exceeded"),
        ],
    )  # fmt: skip
    def test_what_is_wrong_is_named(self, tiny: OpenAIServer, options: Any, param: str, code: str | None) -> None:
        call = {"model": tiny.model, "messages": CHAT} | options
        message = refused(
            lambda: tiny.client.chat.completions.create(**call), openai.BadRequestError, 400, param, code
        )  # fmt: skip
        assert param in message or code == "context_length_exceeded"

    def test_a_prompt_that_can_never_fit(self, tiny: OpenAIServer) -> None:
        for prompt in ([5] * 3000, "word " * 3000, [[5], [5] * 3000]):
            call = lambda prompt=prompt: complete(tiny, prompt)  # noqa: E731
            refused(call, openai.BadRequestError, 400, "prompt", "context_length_exceeded")
        refused(lambda: complete(tiny, [999999]), openai.BadRequestError, 400, "prompt", None)

    def test_keys(self, tiny: OpenAIServer) -> None:
        for key in ("wrong", KEY + "x", "clé"):
            answer = httpx.get(f"{tiny.url}/v1/models", headers={"authorization": f"Bearer {key}".encode()})
            assert (answer.status_code, answer.json()["error"]["code"]) == (401, "invalid_api_key")
        with tiny.openai(api_key="wrong") as client:
            call = lambda: client.chat.completions.create(model=tiny.model, messages=CHAT)  # noqa: E731
            refused(call, openai.AuthenticationError, 401, None, "invalid_api_key")
        assert httpx.get(f"{tiny.url}/v1/models", headers={"x-api-key": KEY}).status_code == 200

    def test_models(self, tiny: OpenAIServer) -> None:
        (card,) = tiny.client.models.list().data
        assert (card.id, card.object, card.owned_by) == (tiny.model, "model", "octavo")
        assert tiny.client.models.retrieve(tiny.model) == card
        for call in (
            lambda: tiny.client.models.retrieve("gpt-5"),
            lambda: tiny.client.chat.completions.create(model="gpt-5", messages=CHAT),
            lambda: tiny.client.completions.create(model="gpt-5", prompt="x"),
        ):
            assert "model" in refused(call, openai.NotFoundError, 404, "model", "model_not_found")

    def test_a_body_that_is_too_large(self, tiny: OpenAIServer) -> None:
        refused(lambda: complete(tiny, "x" * (64 << 10)), openai.APIStatusError, 413, None, "body_too_large")
        assert complete(tiny, **greedy()).choices[0].finish_reason == "length"

    def test_what_has_no_effect_is_said(self, tiny: OpenAIServer) -> None:
        options = greedy(user="me", store=True, metadata={"a": "b"}, extra_body={"service_tier": None})
        raw = tiny.client.chat.completions.with_raw_response.create(model=tiny.model, messages=CHAT, **options)
        assert sorted(raw.headers["x-octavo-ignored"].split(", ")) == ["metadata", "store", "user"]
        answer = raw.parse()
        assert [warning.split(":")[0] for warning in sorted(answer.warnings)] == ["metadata", "store", "user"]
        assert answer.choices[0].message.content == chat(tiny, **greedy()).choices[0].message.content
        plain = tiny.client.chat.completions.with_raw_response.create(model=tiny.model, messages=CHAT, **greedy())
        assert "x-octavo-ignored" not in plain.headers

    def test_a_null_is_as_if_it_were_not_there(self, tiny: OpenAIServer) -> None:
        names = (
            "top_p",
            "n",
            "stop",
            "seed",
            "logit_bias",
            "user",
            "tools",
            "tool_choice",
            "response_format",
            "stream",
        )
        body = {"model": tiny.model, "messages": CHAT, "temperature": 0, "max_tokens": 16, "ignore_eos": True}
        answer = tiny.http.post("/v1/chat/completions", json=body | dict.fromkeys(names)).json()
        expected = chat(tiny, **greedy()).choices[0].message.content
        assert answer["choices"][0]["message"]["content"] == expected
        assert "warnings" not in answer
