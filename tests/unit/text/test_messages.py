"""A conversation, checked: what may be a message, and values that are plain JSON."""

from collections import OrderedDict
from typing import Any

import pytest

from octavo.errors import RequestError, UnsupportedError
from octavo.text.messages import checked_messages, plain_json
from tests.support.chat_templates import TEMPLATES, USER, template


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
def test_refused(messages: Any, message: str) -> None:
    with pytest.raises(RequestError, match=message) as caught:
        template(TEMPLATES["chatml"]).render(messages)
    assert caught.value.param == "messages"


@pytest.mark.parametrize("type", ["image_url", "input_audio", "video", "file"])
def test_parts_that_are_not_text(type: str) -> None:
    with pytest.raises(UnsupportedError, match=rf"content\[0\]: parts of type '{type}' are not supported"):
        template(TEMPLATES["chatml"]).render([{"role": "user", "content": [{"type": type, type: {"url": "file:///"}}]}])


def test_nested_too_deep() -> None:
    value: Any = "x"
    for _ in range(200):
        value = [value]
    with pytest.raises(RequestError, match="nested more than 64 levels"):
        template(TEMPLATES["chatml"]).render([{"role": "user", "content": "x", "extra": value}])


def test_parts_become_lines_where_the_template_wants_text() -> None:
    parts = [{"type": "text", "text": "one"}, {"type": "text", "text": "two"}]
    expected = template(TEMPLATES["chatml"]).render([{"role": "user", "content": "one\ntwo"}])
    assert template(TEMPLATES["chatml"]).render([{"role": "user", "content": parts}]) == expected


def test_values_are_copies_of_plain_types() -> None:
    class Text(str):
        __slots__ = ()

        def secret(self) -> str:
            return "secret"

    prompt = template("{{ messages[0].content.secret }}").render([{"role": "user", "content": Text("x")}])
    assert prompt == ""


def test_a_copy_is_equal_and_nothing_of_it_is_shared() -> None:
    value = {"a": [1, 2.5, True, None, "x"], "b": {"c": []}}
    copy = plain_json(value, "where")
    assert copy == value
    copy["a"].append(1)
    copy["b"]["c"].append(1)
    assert value == {"a": [1, 2.5, True, None, "x"], "b": {"c": []}}


def test_subclasses_become_plain_types() -> None:
    class Number(int):
        pass

    class Text(str):
        __slots__ = ()

    found = plain_json({Text("k"): (Number(3), Text("v"), OrderedDict(x=1))}, "where")
    assert found == {"k": [3, "v", {"x": 1}]}
    assert [type(item) for item in found["k"]] == [int, str, dict]
    assert type(next(iter(found))) is str


@pytest.mark.parametrize("value", [object(), b"x", {1: 2}, {"x"}, [1, object()], {"a": {"b": 1j}}])
def test_what_is_no_json_is_refused_by_the_name_of_its_field(value: Any) -> None:
    with pytest.raises(RequestError, match="tools: ") as caught:
        plain_json(value, "tools")
    assert caught.value.param == "tools"


def test_the_depth_of_a_value_has_an_end() -> None:
    value: Any = 1
    for _ in range(64):
        value = [value]
    assert plain_json(value, "x") == value
    with pytest.raises(RequestError, match="more than 64 levels"):
        plain_json([value], "x")


def test_messages_keep_what_the_template_may_want() -> None:
    parts = [{"type": "text", "text": "one"}, {"type": "text", "text": "two"}]
    given = [
        {"role": "user", "content": parts, "name": "Ann"},
        {"role": "assistant", "content": None, "tool_calls": [{"id": "1"}]},
        {"role": "tool", "content": "", "tool_call_id": "1"},
    ]
    assert checked_messages(given, parts_as_text=False) == given
    assert checked_messages(tuple(given), parts_as_text=True) == [{**given[0], "content": "one\ntwo"}, *given[1:]]
