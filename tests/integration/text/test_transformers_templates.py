"""Chat templates give the prompts that transformers gives."""

from typing import Any

import pytest

from octavo.errors import RequestError
from octavo.text.chat import ChatTemplate
from tests.support.chat_templates import FEATURES, TEMPLATES, USER, by_transformers, conversations, template


def ours(compiled: ChatTemplate, messages: list[Any], tools: list[Any] | None, **kwargs: Any) -> str | None:
    try:
        return compiled.render(messages, tools=tools, **kwargs)
    except RequestError:
        return None


@pytest.mark.parametrize("name", TEMPLATES)
@pytest.mark.parametrize("add_generation_prompt", [True, False])
def test_prompts_of_50_conversations(name: str, add_generation_prompt: bool) -> None:
    compiled = template(TEMPLATES[name])
    num_refused = 0
    for messages, tools in conversations(50):
        theirs = by_transformers(TEMPLATES[name], messages, tools, add_generation_prompt=add_generation_prompt)
        assert ours(compiled, messages, tools, add_generation_prompt=add_generation_prompt) == theirs
        num_refused += theirs is None
    assert num_refused < 40


@pytest.mark.parametrize("kwargs", [{"enable_thinking": False}, {"enable_thinking": True}, {"nonsense": [1]}])
def test_kwargs(kwargs: dict[str, Any]) -> None:
    for messages, tools in conversations(10, seed=2):
        theirs = by_transformers(TEMPLATES["qwen"], messages, tools, add_generation_prompt=True, **kwargs)
        assert template(TEMPLATES["qwen"]).render(messages, tools=tools, kwargs=kwargs) == theirs


@pytest.mark.parametrize("source", FEATURES)
def test_single_features(source: str) -> None:
    theirs = by_transformers(source, USER, None)
    if source == "{{ lipsum is defined }}":  # the one global that we leave out: a generator of nonsense
        theirs = "False"
    assert template(source).render(USER) == theirs
