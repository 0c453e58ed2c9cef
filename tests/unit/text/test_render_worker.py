"""What the rendering process makes of a job, and the frames that it talks in. Here without a process.

With one: tests/integration/text/test_render_pool_hostile.py.
"""

import json
import os
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import pytest

from octavo.errors import RequestError
from octavo.text.render_protocol import HEADER
from octavo.text.render_worker import _answer, _read_frame, _write_frame, rendered
from tests.support.chat_templates import TEMPLATES, USER, template

CHATML = template(TEMPLATES["chatml"])


def job(messages: list[dict[str, Any]], **options: Any) -> dict[str, Any]:
    plain = {"tools": None, "kwargs": None, "add_generation_prompt": True, "continue_final_message": False}
    return {"messages": messages, **plain, **options}


def test_a_job_is_rendered_as_the_template_does():
    assert rendered(CHATML, job(USER)) == CHATML.render(USER)
    without = rendered(CHATML, job(USER, add_generation_prompt=False))
    assert without == CHATML.render(USER, add_generation_prompt=False) != CHATML.render(USER)
    named = template("{{ colour }}{{ tools | length }}")
    assert rendered(named, job(USER, kwargs={"colour": "red"}, tools=[{"type": "function"}])) == "red1"


@pytest.mark.parametrize("content", ["Sure, ", "im", "", "</s>", "Sure,\n"])
def test_the_last_message_goes_on_where_it_ends(content: str):
    """ "im" is in "<|im_end|>", too; an empty content is nowhere to be found."""
    messages = [*USER, {"role": "assistant", "content": content}]
    text = rendered(CHATML, job(messages, continue_final_message=True))
    assert text == CHATML.render(USER, add_generation_prompt=True) + content


def test_a_template_that_strips_the_content_goes_on_at_the_stripped_end():
    stripping = template("{% for m in messages %}[{{ m.content | trim }}]{% endfor %}")
    messages = [*USER, {"role": "assistant", "content": "Sure, "}]
    assert rendered(stripping, job(messages, continue_final_message=True)) == "[Hi][Sure,"


@pytest.mark.parametrize(
    ("source", "content", "message"),
    [
        ("{{ messages | length }}", "Sure", "does not show the last message as it is"),
        ("{{ messages[-1].content | upper }}", "Sure", "does not show the last message as it is"),
        (TEMPLATES["chatml"], [{"type": "text", "text": "x"}], "must be a string"),
    ],
)
def test_what_cannot_be_continued(source: str, content: Any, message: str):
    messages = [*USER, {"role": "assistant", "content": content}]
    with pytest.raises(RequestError, match=message) as caught:
        rendered(template(source), job(messages, continue_final_message=True))
    assert caught.value.param == "continue_final_message"


def test_half_of_a_surrogate_pair_is_refused():
    with pytest.raises(RequestError, match="half of a surrogate pair"):
        rendered(template("{{ '\\ud800' }}"), job(USER))


@pytest.mark.parametrize(
    ("messages", "error"),
    [
        ([], {"message": "messages: the list is empty", "param": "messages", "is_unsupported": False}),
        (
            [{"role": "user", "content": [{"type": "image_url"}]}],
            {
                "message": "messages[0].content[0]: parts of type 'image_url' are not supported; text is",
                "param": "messages",
                "is_unsupported": True,
            },
        ),
    ],
)
def test_a_refusal_is_an_answer(messages: list[dict[str, Any]], error: dict[str, Any]):
    assert _answer(CHATML, json.dumps(job(messages)).encode()) == {"error": error}


@pytest.mark.parametrize("source", ["{{ 'x' * 9000000000000000000 }}", "{{ 'x'.zfill(9000000000000000000) }}"])
def test_running_out_of_memory_is_a_refusal(source: str):
    error = {"message": "messages: they need more memory than a chat template may use", "param": "messages"}
    assert _answer(template(source), json.dumps(job(USER)).encode()) == {"error": error | {"is_unsupported": False}}


def test_a_good_answer_is_its_text():
    assert _answer(CHATML, json.dumps(job(USER)).encode()) == {"text": CHATML.render(USER)}


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    reader, writer = os.pipe()
    yield reader, writer
    for end in (reader, writer):
        with suppress(OSError):  # a test may have closed it
            os.close(end)


def test_frames_come_out_as_they_went_in(pipe: tuple[int, int]):
    reader, writer = pipe
    values = [{"text": "Hi"}, {"text": "日本 🙂"}, {}]
    for value in values:
        _write_frame(writer, value)
    os.close(writer)
    assert [json.loads(_read_frame(reader)) for _ in values] == values
    assert _read_frame(reader) is None, "the end of the stream"


def test_a_frame_that_is_cut_is_the_end(pipe: tuple[int, int]):
    reader, writer = pipe
    os.write(writer, HEADER.pack(10) + b"half")
    os.close(writer)
    assert _read_frame(reader) is None


def test_what_no_stream_can_hold_is_replaced(pipe: tuple[int, int]):
    reader, writer = pipe
    _write_frame(writer, {"text": "a\ud800b"})
    assert json.loads(_read_frame(reader)) == {"text": "a?b"}
