"""`langchain-openai` against a live server: invoke, stream, batch, log-probabilities, errors, tool refusals.

Run by run.sh, with the server's URL and its key as arguments. Needs nothing from the network: token counting, which
would fetch a table, is not used.
"""

import asyncio
import sys
import traceback
from collections.abc import Callable
from typing import Any

import httpx
import openai
from langchain_core.messages import AIMessage, HumanMessage, SystemMessage
from langchain_openai import ChatOpenAI, OpenAI

URL, KEY = sys.argv[1:]
MODEL = httpx.get(f"{URL}/v1/models", headers={"authorization": f"Bearer {KEY}"}).json()["data"][0]["id"]
COMMON: dict[str, Any] = {"model": MODEL, "base_url": f"{URL}/v1", "api_key": KEY, "max_retries": 0, "timeout": 60}
SHAPE = {"title": "Answer", "type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
QUESTION = "What is the capital of France? Answer in one sentence."


def chat(**options: Any) -> ChatOpenAI:
    return ChatOpenAI(**{**COMMON, "temperature": 0, "max_tokens": 40, **options})


def a_conversation() -> None:
    messages: list[Any] = [SystemMessage("You are a helpful assistant."), HumanMessage(QUESTION)]
    first = chat().invoke(messages)
    assert "Paris" in first.content, first.content
    assert first.response_metadata["finish_reason"] in ("stop", "length")
    assert first.usage_metadata is not None
    assert first.usage_metadata["total_tokens"] > first.usage_metadata["output_tokens"] > 0
    second = chat().invoke([*messages, AIMessage(first.content), HumanMessage("And of Italy?")])
    assert "Rome" in second.content, second.content


def streams() -> None:
    whole = chat().invoke(QUESTION)
    parts = list(chat(stream_usage=True).stream(QUESTION))
    assert "".join(str(part.content) for part in parts) == whole.content
    merged = parts[0]
    for part in parts[1:]:
        merged = merged + part
    assert merged.response_metadata["finish_reason"] == whole.response_metadata["finish_reason"]
    assert merged.usage_metadata is not None
    assert merged.usage_metadata["output_tokens"] == whole.usage_metadata["output_tokens"]

    async def streamed() -> str:
        return "".join([str(part.content) async for part in chat().astream(QUESTION)])

    assert asyncio.run(streamed()) == whole.content


def batches() -> None:
    questions = [QUESTION, "What is 2 + 2?", "Name a colour.", "Say hello."]
    alone = [chat().invoke(question).content for question in questions]
    assert [answer.content for answer in chat().batch(questions)] == alone


def log_probabilities() -> None:
    answer = chat(max_tokens=6).bind(logprobs=True, top_logprobs=3).invoke(QUESTION)
    content = answer.response_metadata["logprobs"]["content"]
    assert len(content) == 6
    assert "".join(entry["token"] for entry in content) == answer.content
    assert all(len(entry["top_logprobs"]) == 3 and entry["logprob"] <= 0 for entry in content)


def several_choices_and_seeds() -> None:
    model = chat(temperature=1.0, n=2, seed=3, max_tokens=12)
    both = model.generate([[HumanMessage(QUESTION)]]).generations[0]
    alone = [chat(temperature=1.0, seed=3 + i, max_tokens=12).invoke(QUESTION).content for i in range(2)]
    assert [choice.text for choice in both] == alone


def stop_and_extra_fields() -> None:
    answer = chat(stop=["Paris"]).invoke(QUESTION)
    assert "Paris" not in answer.content
    assert answer.response_metadata["finish_reason"] == "stop"
    free = chat(temperature=1.0, extra_body={"top_k": 1}).invoke(QUESTION)
    assert free.content == chat().invoke(QUESTION).content


def text_completions() -> None:
    model = OpenAI(**COMMON, temperature=0, max_tokens=16)
    whole = model.invoke("1, 2, 3, 4,")
    assert "5, 6" in whole, whole
    assert "".join(model.stream("1, 2, 3, 4,")) == whole


def look_up(word: str) -> str:
    """Look a word up."""
    return word


def refusals() -> None:
    """What is not offered yet is refused by name, not ignored."""
    for call, kind, param in (
        (lambda: chat(temperature=-1).invoke(QUESTION), openai.BadRequestError, "temperature"),
        (lambda: chat(model="gpt-5").invoke(QUESTION), openai.NotFoundError, "model"),
        (lambda: chat(api_key="wrong").invoke(QUESTION), openai.AuthenticationError, None),
        (lambda: chat().bind_tools([look_up]).invoke(QUESTION), openai.BadRequestError, "tools"),
        (lambda: chat().with_structured_output(SHAPE).invoke(QUESTION), openai.BadRequestError, "response_format"),
        (lambda: chat().invoke("word " * 9000), openai.BadRequestError, "messages"),
    ):
        found: openai.APIStatusError | None = None
        try:
            call()
        except kind as error:
            found = error
        assert found is not None, f"{param} was not refused"
        assert found.param == param, found


TESTS: tuple[Callable[[], None], ...] = (
    a_conversation, streams, batches, log_probabilities, several_choices_and_seeds, stop_and_extra_fields,
    text_completions, refusals,
)  # fmt: skip


def main() -> int:
    num_failed = 0
    for test in TESTS:
        try:
            test()
        except Exception:
            num_failed += 1
            print(f"FAILED {test.__name__}\n{traceback.format_exc()}")
    print(f"langchain-openai: {len(TESTS) - num_failed} passed, {num_failed} failed")
    return 1 if num_failed else 0


if __name__ == "__main__":
    sys.exit(main())
