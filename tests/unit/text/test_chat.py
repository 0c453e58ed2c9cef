"""Chat templates: the prompts of transformers, where templates are found, and what a request may and may not say."""

import json
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from octavo.errors import ModelFormatError, RequestError, UnsupportedError
from octavo.text.chat import ChatTemplate
from octavo.text.meter import RenderLimits
from octavo.text.template_text import TemplateText, template_text_from_directory, template_text_from_gguf
from octavo.weights.open import open_checkpoint
from tests.support.chat_templates import FEATURES, TEMPLATES, TOOLS, conversations

USER = [{"role": "user", "content": "Hi"}]
SPECIAL = {"bos_token": "<s>", "eos_token": "</s>"}
ROOMY = RenderLimits(seconds=20.0)  # these are not about time, and the machine is shared


def template(source: str, **special: str) -> ChatTemplate:
    return ChatTemplate({"default": source}, special or SPECIAL, limits=ROOMY)


def _compiled(text: TemplateText | None) -> ChatTemplate | None:
    return None if text is None else ChatTemplate(text.sources, text.special_tokens)


def by_transformers(source: str, messages: list[Any], tools: list[Any] | None, **kwargs: Any) -> str | None:
    """transformers' prompt; None where the template raises."""
    from jinja2 import TemplateError
    from transformers.utils.chat_template_utils import render_jinja_template

    try:
        prompts, _ = render_jinja_template([messages], tools, chat_template=source, **SPECIAL, **kwargs)
    except (TemplateError, TypeError):
        return None
    return str(prompts[0])


def ours(compiled: ChatTemplate, messages: list[Any], tools: list[Any] | None, **kwargs: Any) -> str | None:
    try:
        return compiled.render(messages, tools=tools, **kwargs)
    except RequestError:
        return None


class TestTransformers:
    @pytest.mark.parametrize("name", TEMPLATES)
    @pytest.mark.parametrize("add_generation_prompt", [True, False])
    def test_prompts_of_50_conversations(self, name: str, add_generation_prompt: bool) -> None:
        compiled = template(TEMPLATES[name])
        num_refused = 0
        for messages, tools in conversations(50):
            theirs = by_transformers(TEMPLATES[name], messages, tools, add_generation_prompt=add_generation_prompt)
            assert ours(compiled, messages, tools, add_generation_prompt=add_generation_prompt) == theirs
            num_refused += theirs is None
        assert num_refused < 40

    @pytest.mark.parametrize("kwargs", [{"enable_thinking": False}, {"enable_thinking": True}, {"nonsense": [1]}])
    def test_kwargs(self, kwargs: dict[str, Any]) -> None:
        for messages, tools in conversations(10, seed=2):
            theirs = by_transformers(TEMPLATES["qwen"], messages, tools, add_generation_prompt=True, **kwargs)
            assert template(TEMPLATES["qwen"]).render(messages, tools=tools, kwargs=kwargs) == theirs

    def test_smollm2(self, smollm2_path: Path) -> None:
        checkpoint = open_checkpoint(smollm2_path)
        compiled = _compiled(template_text_from_gguf(checkpoint.metadata))
        source = checkpoint.metadata["tokenizer.chat_template"]
        checkpoint.close()
        assert compiled is not None
        for messages, _ in conversations(50):
            theirs = by_transformers(str(source), messages, None, add_generation_prompt=True)
            assert compiled.render(messages) == theirs

    @pytest.mark.parametrize("source", FEATURES)
    def test_single_features(self, source: str) -> None:
        theirs = by_transformers(source, USER, None)
        if source == "{{ lipsum is defined }}":  # the one global that we leave out: a generator of nonsense
            theirs = "False"
        assert template(source).render(USER) == theirs


class TestMessages:
    @pytest.mark.parametrize(
        ("messages", "message"),
        [
            ([], "messages: the list is empty"),
            ("Hi", "messages: expected a list, found str"),
            ({"role": "user"}, "messages: expected a list, found dict"),
            (None, "messages: expected a list, found NoneType"),
            ([USER[0]] * 40_000, "messages: 40000 messages; at most 32768 are allowed"),
            (["Hi"], r"messages\[0\]: expected an object, found str"),
            ([{"content": "Hi"}], r"messages\[0\].role: None is not a role"),
            ([{"role": 3, "content": "Hi"}], r"messages\[0\].role: 3"),
            ([{"role": "", "content": "Hi"}], r"messages\[0\].role: ''"),
            ([*USER, {"role": "user"}], r"messages\[1\].content: expected a string or a list of parts, found nothing"),
            ([{"role": "user", "content": 3}], r"messages\[0\].content: .*found int"),
            ([{"role": "user", "content": {"text": "x"}}], r"messages\[0\].content: .*found dict"),
            ([{"role": "user", "content": ["x"]}], r"messages\[0\].content\[0\]: expected an object with a type"),
            ([{"role": "user", "content": [{"type": "text"}]}], r"content\[0\].text: expected a string"),
            ([{"role": "user", "content": "x", "extra": object()}], "messages: object is not a JSON value"),
            ([{"role": "user", "content": "x", 3: "y"}], "a key that is not a string"),
        ],
    )
    def test_refused(self, messages: Any, message: str) -> None:
        with pytest.raises(RequestError, match=message) as caught:
            template(TEMPLATES["chatml"]).render(messages)
        assert caught.value.param == "messages"

    @pytest.mark.parametrize("type", ["image_url", "input_audio", "video", "file"])
    def test_parts_that_are_not_text(self, type: str) -> None:
        with pytest.raises(UnsupportedError, match=rf"content\[0\]: parts of type '{type}' are not supported"):
            template(TEMPLATES["chatml"]).render(
                [{"role": "user", "content": [{"type": type, type: {"url": "file:///"}}]}]
            )

    def test_nested_too_deep(self) -> None:
        value: Any = "x"
        for _ in range(200):
            value = [value]
        with pytest.raises(RequestError, match="nested more than 64 levels"):
            template(TEMPLATES["chatml"]).render([{"role": "user", "content": "x", "extra": value}])

    def test_parts_become_lines_where_the_template_wants_text(self) -> None:
        parts = [{"type": "text", "text": "one"}, {"type": "text", "text": "two"}]
        expected = template(TEMPLATES["chatml"]).render([{"role": "user", "content": "one\ntwo"}])
        assert template(TEMPLATES["chatml"]).render([{"role": "user", "content": parts}]) == expected

    MACRO = "{% macro m(content) %}{% for p in content %}{{ p.text }}+{% endfor %}{% endmacro %}"

    @pytest.mark.parametrize(
        "source",
        [
            "{% for m in messages %}{% for p in m.content %}{{ p.text }}+{% endfor %}{% endfor %}",
            "{% for m in messages %}{% for p in m['content'] | list %}{{ p['text'] }}+{% endfor %}{% endfor %}",
            "{% for m in messages %}{% set c = m.content %}{% for p in c %}{{ p.text }}+{% endfor %}{% endfor %}",
            MACRO + "{{ m(messages[0].content) }}",
        ],
    )  # fmt: skip
    def test_parts_stay_where_the_template_loops_over_them(self, source: str) -> None:
        parts = [{"type": "text", "text": "one"}, {"type": "text", "text": "two"}]
        assert template(source).render([{"role": "user", "content": parts}]) == "one+two+"

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

    def test_values_are_copies_of_plain_types(self) -> None:
        class Text(str):
            __slots__ = ()

            def secret(self) -> str:
                return "secret"

        prompt = template("{{ messages[0].content.secret }}").render([{"role": "user", "content": Text("x")}])
        assert prompt == ""


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


class TestWhereTemplatesAre:
    def test_config_as_text(self, tmp_path: Path) -> None:
        config = {"chat_template": "{{ bos_token }}{{ messages[0].content }}", "bos_token": {"content": "<s>"}}
        (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
        compiled = _compiled(template_text_from_directory(tmp_path))
        assert compiled is not None
        assert compiled.render(USER) == "<s>Hi"

    def test_config_as_list(self, tmp_path: Path) -> None:
        named = [{"name": "default", "template": "plain"}, {"name": "tool_use", "template": "tools"}]
        (tmp_path / "tokenizer_config.json").write_text(json.dumps({"chat_template": named}))
        compiled = _compiled(template_text_from_directory(tmp_path))
        assert compiled is not None
        assert compiled.render(USER) == "plain"
        assert compiled.render(USER, tools=[]) == "plain"
        assert compiled.render(USER, tools=TOOLS) == "tools"

    def test_files_win(self, tmp_path: Path) -> None:
        (tmp_path / "tokenizer_config.json").write_text(json.dumps({"chat_template": "config"}))
        (tmp_path / "chat_template.jinja").write_text("file é", encoding="utf-8")
        (tmp_path / "additional_chat_templates").mkdir()
        (tmp_path / "additional_chat_templates" / "tool_use.jinja").write_text("tools")
        compiled = _compiled(template_text_from_directory(tmp_path))
        assert compiled is not None
        assert compiled.render(USER) == "file é"
        assert compiled.render(USER, tools=TOOLS) == "tools"

    @pytest.mark.parametrize("config", [{}, {"chat_template": None}, {"chat_template": ""}, {"chat_template": []}])
    def test_none(self, config: dict[str, Any], tmp_path: Path) -> None:
        (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
        assert template_text_from_directory(tmp_path) is None
        assert template_text_from_gguf({}) is None

    def test_gguf(self) -> None:
        metadata: dict[str, object] = {
            "tokenizer.ggml.tokens": ["<u>", "<s>", "</s>", "<p>"],
            "tokenizer.ggml.bos_token_id": 1,
            "tokenizer.ggml.eos_token_id": 2,
            "tokenizer.ggml.padding_token_id": 3,
            "tokenizer.chat_template": "{{ bos_token }}{{ eos_token }}{{ pad_token }}{{ unk_token }}",
            "tokenizer.chat_template.tool_use": "tools",
        }
        compiled = _compiled(template_text_from_gguf(metadata))
        assert compiled is not None
        assert compiled.render(USER) == "<s></s><p>"
        assert compiled.render(USER, tools=TOOLS) == "tools"

    @pytest.mark.parametrize(
        ("value", "message"),
        [
            (3, "chat_template: expected a string or a list, found int"),
            ([{"name": "x"}], "an entry without a name"),
            ([{"name": "rag", "template": "x"}], "chat_template: none is called default, only rag"),
            ("{% for %}", "does not compile"),
            ("{{ x | no_such_filter }}", "No filter named 'no_such_filter'"),
            ("{% include 'x' %}", "Include is not offered"),
            ("{% import 'x' as y %}", "Import is not offered"),
            ("{% extends 'x' %}", "Extends is not offered"),
            ("{% autoescape true %}{% endautoescape %}", "is not offered"),
            ("x" * 70_000, "longer than"),
            ("{{ " + "(" * 3000 + "1" + ")" * 3000 + " }}", "too deeply nested"),
            ("{{ " + "not " * 3000 + "1 }}", "too deeply nested"),
            ("{{ x" + ".a" * 3000 + " }}", "too deeply nested"),
            ("{% if x %}" * 300 + "{% endif %}" * 300, "compile"),
        ],
    )
    def test_broken(self, value: Any, message: str, tmp_path: Path) -> None:
        (tmp_path / "tokenizer_config.json").write_text(json.dumps({"chat_template": value}))
        with pytest.raises(ModelFormatError, match=message):
            _compiled(template_text_from_directory(tmp_path))


def test_the_clock() -> None:
    at = datetime(2024, 7, 26)
    compiled = ChatTemplate({"default": TEMPLATES["llama3"]}, SPECIAL, limits=ROOMY, now=lambda: at)
    assert "Today Date: 26 Jul 2024\n" in compiled.render(USER)
