"""Hostile chat templates: none reaches Python, and what would take gigabytes is refused before it is done.

That none takes long or much memory is measured in tests/integration/text/test_template_bombs.py.
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


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("times", "makes more than 128 MiB of values"),
        ("join of copies", "makes more than 128 MiB of values"),
        ("lists of lists", "makes a value of more than 32 MiB"),
        ("deep tuple", "more than 100 levels deep"),
        ("power", "computes an integer of more than 65536 bits"),
        ("center", "asks for a width of 1e.09; at most 100000"),
        ("percent star", "asks for a width of"),
        ("batch", "asks for a width of"),
        ("round", "asks for a width of"),
        ("format of copies", "has a format of more than 100000 characters"),
        ("tojson separator", "asks tojson for more than 64 characters"),
        ("rfind", "seeks 2000001 characters in 4000000"),
        ("endless macro", "RecursionError"),
        ("strftime", "strftime_now: a format of more than 200 characters"),
        ("lipsum", "'lipsum' is undefined"),
        ("to_bytes", r"calls int\.to_bytes"),
        ("translate", r"calls str\.translate"),
        ("urlize", "No filter named 'urlize'"),
    ],
)
def test_what_would_take_too_much_is_refused_before_it_is_done(name: str, message: str) -> None:
    with pytest.raises(OctavoError, match=message):
        ChatTemplate({"default": BOMBS[name]}, {}).render(USER)
