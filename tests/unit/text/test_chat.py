"""Messages to a prompt: what the template says of them, and what a request may and may not say beside them."""

from datetime import datetime
from typing import Any

import pytest

from octavo.errors import ModelFormatError, RequestError
from octavo.text.chat import ChatTemplate
from tests.support.chat_templates import SPECIAL, TEMPLATES, USER, template


class TestMessages:
    def test_content_may_be_missing_beside_tool_calls(self) -> None:
        calls = [{"type": "function", "function": {"name": "f", "arguments": {"x": 1}}}]
        prompt = template(TEMPLATES["qwen"]).render(
            [*USER, {"role": "assistant", "content": None, "tool_calls": calls}]
        )
        assert '{"name": "f", "arguments": {"x": 1}}' in prompt

    def test_what_the_template_refuses(self) -> None:
        with pytest.raises(RequestError, match="refuses them: Roles must alternate") as caught:
            template(TEMPLATES["mistral"]).render([*USER, *USER])
        assert caught.value.param == "messages"

    def test_what_the_template_fails_on(self) -> None:
        with pytest.raises(RequestError, match="fails on them: TypeError"):
            template("{{ 1 + messages[0].content }}").render(USER)


class TestKwargs:
    @pytest.mark.parametrize(
        "name",
        ["messages", "tools", "add_generation_prompt", "bos_token", "eos_token", "pad_token", "self", "loop", "range",
         "raise_exception", "strftime_now", "namespace", "dict", "caller", "true"],
    )  # fmt: skip
    def test_reserved_names(self, name: str) -> None:
        with pytest.raises(RequestError, match=f"chat_template_kwargs: {name} is set by Octavo") as caught:
            template(TEMPLATES["chatml"]).render(USER, kwargs={name: 1})
        assert caught.value.param == "chat_template_kwargs"

    @pytest.mark.parametrize("name", ["__class__", "_x", "", "a b", "a.b", "1x", 3, "{{"])
    def test_names_that_are_none(self, name: Any) -> None:
        with pytest.raises(RequestError, match="is not a name for a template's variable"):
            template(TEMPLATES["chatml"]).render(USER, kwargs={name: 1})

    @pytest.mark.parametrize("kwargs", [{"x": object()}, {"x": {1: 2}}, {"x": b"bytes"}, [("x", 1)], "x"])
    def test_values_that_are_not_json(self, kwargs: Any) -> None:
        with pytest.raises(RequestError, match="chat_template_kwargs"):
            template(TEMPLATES["chatml"]).render(USER, kwargs=kwargs)

    @pytest.mark.parametrize("name", ["tokenize", "chat_template", "return_dict", "limits", "kwargs_", "environment"])
    def test_names_of_arguments_elsewhere_are_only_variables(self, name: str) -> None:
        assert template(TEMPLATES["chatml"]).render(USER, kwargs={name: True}) == template(TEMPLATES["chatml"]).render(
            USER
        )

    def test_documents(self) -> None:
        compiled = template("{{ documents is none }}{% for d in documents or [] %}{{ d.text }}{% endfor %}")
        assert compiled.render(USER) == "True"
        assert compiled.render(USER, kwargs={"documents": [{"text": "a"}, {"text": "b"}]}) == "Falseab"

    @pytest.mark.parametrize("tools", ["x", {"a": 1}, ["x"], [3]])
    def test_tools(self, tools: Any) -> None:
        with pytest.raises(RequestError, match="tools: expected a list of objects"):
            template(TEMPLATES["chatml"]).render(USER, tools=tools)


def test_the_clock() -> None:
    at = datetime(2024, 7, 26)
    compiled = ChatTemplate({"default": TEMPLATES["llama3"]}, SPECIAL, now=lambda: at)
    assert "Today Date: 26 Jul 2024\n" in compiled.render(USER)


def test_templates_that_nobody_asks_for_are_not_compiled() -> None:
    sources = {"default": "plain", "rag": "{% include 'x' %}", "broken": "{% for %}", "long": "x" * 100_000}
    assert ChatTemplate(sources, {}).render([{"role": "user", "content": "Hi"}]) == "plain"


def test_names_in_a_message_are_cut_and_shown_as_they_are() -> None:
    with pytest.raises(ModelFormatError) as caught:
        ChatTemplate({"\x1b[31m\n" + "x" * 5000: "plain"}, {})
    assert len(str(caught.value)) < 400
    assert str(caught.value).isprintable()
