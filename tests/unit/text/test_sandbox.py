"""The Jinja of chat templates: none reaches Python, and what it offers beside Jinja's own.

That none takes long or much memory is the business of the process that it runs in:
tests/integration/text/test_template_bombs.py.
"""

from pathlib import Path

import pytest

from octavo.errors import ModelFormatError, OctavoError, RequestError
from octavo.text.chat import ChatTemplate
from tests.support.chat_templates import USER
from tests.support.hostile_templates import BOMBS, INSIDES, PAYLOADS


@pytest.mark.parametrize("payload", PAYLOADS)
def test_injections(payload: str, tmp_path: Path) -> None:
    marker = tmp_path / "marker"
    source = payload.replace("CMD", f"touch {marker}")
    try:
        text = ChatTemplate({"default": source}, {"bos_token": "<s>"}).render(USER)
    except (RequestError, ModelFormatError) as error:
        text = str(error)
    assert not marker.exists()
    assert not any(inside in text for inside in INSIDES), text
    assert USER == [{"role": "user", "content": "Hi"}]


def test_there_are_enough_injections() -> None:
    assert len(PAYLOADS) >= 40


def test_injections_in_messages_are_text() -> None:
    for payload in PAYLOADS:
        text = ChatTemplate({"default": "{{ messages[0].content }}"}, {}).render([{"role": "user", "content": payload}])
        assert text == payload


def test_errors_show_no_addresses() -> None:
    for source in ("{{ range }}", "{{ messages.index }}", "{{ messages | map('upper') }}", "{{ cycler() + 1 }}"):
        with pytest.raises(RequestError) as caught:
            ChatTemplate({"default": source}, {}).render(USER)
        assert "0x" not in str(caught.value)


def rendered(source: str) -> str:
    return ChatTemplate({"default": source}, {}).render(USER)


def test_no_constant_is_computed_while_it_is_compiled() -> None:
    """Compiling has a limit of its own, and a template that goes over it is taken for broken."""
    source = "{% if messages[0].content == 'go' %}{{ 1 // 0 }}{{ 'x' * (1 // 0) }}{% set y = 1 // 0 %}{% endif %}ok"
    assert rendered(source) == "ok"
    compiled = ChatTemplate({"default": "{{ 'x' * 99999999999 }}" + str(BOMBS["power"])}, {})
    assert compiled is not None


def test_too_long_a_prompt() -> None:
    compiled = ChatTemplate({"default": "{{ messages[0].content }}"}, {}, max_chars=100)
    assert len(compiled.render([{"role": "user", "content": "x" * 100}])) == 100
    with pytest.raises(RequestError, match="writes more than 100 characters") as caught:
        compiled.render([{"role": "user", "content": "x" * 101}])
    assert caught.value.param == "messages"


def test_no_memory_is_the_callers_to_tell() -> None:
    with pytest.raises(MemoryError):
        rendered("{{ 'x' * 9000000000000000000 }}")


def test_a_macro_without_end() -> None:
    with pytest.raises(RequestError, match="fails on them: RecursionError"):
        rendered(BOMBS["endless macro"])


def test_json_is_not_escaped_for_html() -> None:
    assert rendered("{{ {'b': '<é>', 'a': 1} | tojson }}") == '{"b": "<é>", "a": 1}'
    assert rendered("{{ {'b': 1, 'a': [1]} | tojson(indent=1, sort_keys=true) }}") == '{\n "a": [\n  1\n ],\n "b": 1\n}'
    assert rendered("{{ 'é' | tojson(ensure_ascii=true) }}") == '"\\u00e9"'


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("{{ lipsum() }}", "'lipsum' is undefined"),
        ("{{ [1, 2] | random }}", "No filter named 'random'"),
        ("{{ range }}", "prints a function"),
        ("{{ cycler }}", "prints a type"),
        ("{{ messages | map('upper') }}", "prints a generator"),
        ("{{ raise_exception('no') }}", "refuses them: no"),
        ("{{ range(999999) | length }}", "Range too big"),
    ],
)
def test_what_is_refused(source: str, message: str) -> None:
    with pytest.raises(OctavoError, match=message):
        rendered(source)


def test_a_long_conversation_is_no_bomb() -> None:
    """3 million characters in 300 messages, through an ordinary template's string work."""
    source = "{% for m in messages %}{{ '<|' + m.role + '|>\n' }}"
    source += "{{ m.content.split('</think>')[-1].strip() ~ '\n' }}{% endfor %}"
    messages = [{"role": "user", "content": "word " * 2000} for _ in range(300)]
    assert ChatTemplate({"default": source}, {}).render(messages).count("<|user|>") == 300


@pytest.mark.parametrize(
    "method", ["update(m, {'content': 'x'})", "clear(m)", "pop(m, 'content')", "setdefault(m, 'x', 1)"]
)
def test_messages_cannot_be_changed_through_the_class_of_dicts(method: str) -> None:
    with pytest.raises(RequestError, match="refuses them"):
        rendered("{% for m in messages %}{{ dict." + method + " }}{% endfor %}")
    assert rendered("{{ dict(a=1) | tojson }}") == '{"a": 1}'
