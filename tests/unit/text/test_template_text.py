"""Where the text of a model's templates is kept, and what is broken there."""

import json
from pathlib import Path
from typing import Any

import pytest

from octavo.errors import ModelFormatError
from octavo.text.template_text import template_text_from_directory, template_text_from_gguf
from tests.support.chat_templates import TOOLS, USER, compiled


def test_config_as_text(tmp_path: Path) -> None:
    config = {"chat_template": "{{ bos_token }}{{ messages[0].content }}", "bos_token": {"content": "<s>"}}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    found = compiled(template_text_from_directory(tmp_path))
    assert found is not None
    assert found.render(USER) == "<s>Hi"


def test_config_as_list(tmp_path: Path) -> None:
    named = [{"name": "default", "template": "plain"}, {"name": "tool_use", "template": "tools"}]
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"chat_template": named}))
    found = compiled(template_text_from_directory(tmp_path))
    assert found is not None
    assert found.render(USER) == "plain"
    assert found.render(USER, tools=[]) == "plain"
    assert found.render(USER, tools=TOOLS) == "tools"


def test_files_win(tmp_path: Path) -> None:
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"chat_template": "config"}))
    (tmp_path / "chat_template.jinja").write_text("file é", encoding="utf-8")
    (tmp_path / "additional_chat_templates").mkdir()
    (tmp_path / "additional_chat_templates" / "tool_use.jinja").write_text("tools")
    found = compiled(template_text_from_directory(tmp_path))
    assert found is not None
    assert found.render(USER) == "file é"
    assert found.render(USER, tools=TOOLS) == "tools"


@pytest.mark.parametrize("config", [{}, {"chat_template": None}, {"chat_template": ""}, {"chat_template": []}])
def test_none(config: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    assert template_text_from_directory(tmp_path) is None
    assert template_text_from_gguf({}) is None


def test_gguf() -> None:
    metadata: dict[str, object] = {
        "tokenizer.ggml.tokens": ["<u>", "<s>", "</s>", "<p>"],
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.padding_token_id": 3,
        "tokenizer.chat_template": "{{ bos_token }}{{ eos_token }}{{ pad_token }}{{ unk_token }}",
        "tokenizer.chat_template.tool_use": "tools",
    }
    found = compiled(template_text_from_gguf(metadata))
    assert found is not None
    assert found.render(USER) == "<s></s><p>"
    assert found.render(USER, tools=TOOLS) == "tools"


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (3, "chat_template: expected a string or a list, found int"),
        ([{"name": "x"}], "an entry without a name"),
        ([{"name": "rag", "template": "x"}], "chat_template: none is called default, only 'rag'"),
        ("{% for %}", "does not compile"),
        ("{{ x | no_such_filter }}", "No filter named 'no_such_filter'"),
        ("{% include 'x' %}", "Include is not offered"),
        ("{% import 'x' as y %}", "Import is not offered"),
        ("{% extends 'x' %}", "Extends is not offered"),
        ("{% autoescape true %}{% endautoescape %}", "is not offered"),
        ("x" * 70_000, "longer than"),
        ("{{ " + "(" * 3000 + "1" + ")" * 3000 + " }}", "cannot be compiled"),
        ("{{ " + "not " * 3000 + "1 }}", "cannot be compiled"),
        ("{{ x" + ".a" * 3000 + " }}", "cannot be compiled"),
        ("{% if x %}" * 300 + "{% endif %}" * 300, "compile"),
    ],
)
def test_broken(value: Any, message: str, tmp_path: Path) -> None:
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"chat_template": value}))
    with pytest.raises(ModelFormatError, match=message):
        compiled(template_text_from_directory(tmp_path))
