"""text.render_pool: the same prompts as in-process, options, refusals, and templates that do not start."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import octavo
from octavo.errors import EngineError, ModelFormatError, RequestError, UnsupportedError
from octavo.text.chat import ChatTemplate
from octavo.text.render_pool import RenderPool
from octavo.text.template_text import TemplateText
from tests.support.chat_templates import TEMPLATES, conversations
from tests.support.render_pools import PLAIN, SPECIAL, USER, children, earlier_children, made, says, started, until

__all__ = ["earlier_children"]


def in_process(template: ChatTemplate, messages: Any, tools: Any) -> str:
    try:
        return template.render(messages, tools=tools)
    except RequestError as error:
        return f"{type(error).__name__} {error.param} {error}"


@pytest.mark.parametrize("name", TEMPLATES)
def test_the_same_prompts_as_in_process(name: str) -> None:
    with started(TEMPLATES[name], 2) as pool:
        template = ChatTemplate({"default": TEMPLATES[name]}, SPECIAL)
        for messages, tools in conversations(60):
            expected = in_process(template, messages, tools)
            try:
                found = pool.render(messages, tools=tools)
            except RequestError as error:
                found = f"{type(error).__name__} {error.param} {error}"
            assert found == expected


class TestOptions:
    def test_kwargs_and_the_generation_prompt(self) -> None:
        with started(PLAIN + "{{ colour }}{% if add_generation_prompt %}<go>{% endif %}") as pool:
            assert pool.render(USER, kwargs={"colour": "red"}) == "Hired<go>"
            assert pool.render(USER, add_generation_prompt=False) == "Hi"
            with pytest.raises(RequestError, match="messages is set by Octavo") as caught:
                pool.render(USER, kwargs={"messages": []})
            assert caught.value.param == "chat_template_kwargs"

    def test_refusals_keep_their_kind(self) -> None:
        with started("{{ '\\ud800' if messages[0].content == 'half' else messages[0].content }}") as pool:
            with pytest.raises(UnsupportedError, match="image_url") as caught:
                pool.render([{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}])
            assert caught.value.param == "messages"
            deep: list[Any] = []
            for _ in range(100_000):
                deep = [deep]
            for content in (b"bytes", 10**5000, deep):
                with pytest.raises(RequestError, match="cannot be given this"):
                    pool.render([{"role": "user", "content": content}])
            for half in ("half", "\ud800"):
                with pytest.raises(RequestError, match="surrogate"):
                    pool.render(says(half))
            assert pool.render(USER) == "Hi"

    def test_two_templates(self) -> None:
        pool = RenderPool(TemplateText({"default": "plain", "tool_use": "{{ tools | length }} tools"}, {}))
        assert pool.render(USER) == "plain"
        assert pool.render(USER, tools=[{"a": 1}]) == "1 tools"
        pool.close()


@pytest.mark.parametrize("content", ["x" * 500, "é🙂" * 100])
@pytest.mark.parametrize("operator", ["~", "+"])
def test_a_prompt_gathered_in_a_namespace(content: str, operator: str) -> None:
    """1,000 messages, each of which copies all that was gathered before it, with + once for each operator."""
    source = "{% set ns = namespace(text='') %}{% for m in messages %}"
    source += "{% set ns.text = ns.text ~ '<|' ~ m.role ~ '|>' ~ m.content ~ '\n' %}{% endfor %}{{ ns.text }}"
    with started(source.replace("~", operator), 1) as pool:  # 0.02 to 0.2 s
        assert pool.render(says(content) * 1000) == f"<|user|>{content}\n" * 1000


class TestContinuing:
    CHATML = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"

    def continued(self, source: str, *conversations: Any) -> list[str]:
        """The prompts for these conversations, of one pool."""
        options = {"add_generation_prompt": False, "continue_final_message": True}
        with started(source, 1) as pool:
            return [pool.render(messages, **options) for messages in conversations]

    def test_nothing_stands_behind_the_content(self) -> None:
        contents = ["Sure, ", "", "im", "<|im_end|>", "Hi", "a\n\n", "mark-"]
        conversations = [[*USER, {"role": "assistant", "content": content}] for content in contents]
        begin = "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
        assert self.continued(self.CHATML, *conversations) == [begin + content for content in contents]

    def test_a_template_that_strips(self) -> None:
        source = self.CHATML.replace("m.content", "m.content | trim")
        messages = [*USER, {"role": "assistant", "content": " Sure, "}]
        assert self.continued(source, messages)[0].endswith("assistant\nSure,")

    def test_refused(self) -> None:
        answer = {"role": "assistant", "content": [{"type": "text", "text": "x"}]}
        for source, last, message in (
            (self.CHATML, answer, "must be a string"),
            ("{{ messages[0].content }}", {"role": "assistant", "content": "x"}, "does not show the last message"),
            (self.CHATML.replace("m.content", "m.content | upper"), {"role": "user", "content": "x"}, "does not show"),
        ):
            with pytest.raises(RequestError, match=message) as caught:
                self.continued(source, [*USER, last])
            assert caught.value.param == "continue_final_message"
        with pytest.raises(RequestError, match="the list is empty"):
            self.continued(self.CHATML, [])


class TestStarting:
    def test_nothing_is_started_before_the_first_prompt(self) -> None:
        pool = made(PLAIN)
        assert not children()
        assert pool.render(USER) == "Hi"
        assert len(children()) == 1
        pool.close()
        assert not children(with_zombies=True)

    @pytest.mark.parametrize("source", ["{% for %}", "{{ " + "(" * 9000 + ")" * 9000 + " }}", "x" * 70_000])
    def test_broken_templates(self, source: str) -> None:
        with pytest.raises(ModelFormatError, match=r"chat_template|chat template"):
            made(source).start()
        until(lambda: not children(with_zombies=True))
        pool = made(source)
        for _ in range(2):
            with pytest.raises(ModelFormatError, match=r"chat_template|chat template"):
                pool.render(USER)
        until(lambda: not children(with_zombies=True))

    def test_a_template_that_takes_too_long_to_compile(self) -> None:
        source = "{{ 1 }}" * 9000
        with pytest.raises(ModelFormatError, match="takes too long to compile"):
            made(source, compile_seconds=0.02).start()
        until(lambda: not children(with_zombies=True))

    @pytest.mark.parametrize("executable", ["/nowhere/python", "/bin/false"])
    def test_no_process_to_be_had(self, monkeypatch: pytest.MonkeyPatch, executable: str) -> None:
        pool = made(PLAIN)
        with monkeypatch.context() as patch:
            patch.setattr(sys, "executable", executable)
            with pytest.raises(EngineError, match="helper process"):
                pool.render(USER)
            until(lambda: not children(with_zombies=True))
        assert pool.render(USER) == "Hi"  # there may be one later
        pool.close()

    def test_a_script_that_found_the_package_by_a_path_of_its_own(self, tmp_path: Path) -> None:
        """The helper does not inherit `sys.path`; it is told where this package lies."""
        script = (
            "import sys; sys.path.append(sys.argv[1])\n"
            "from octavo.text.render_pool import RenderPool; from octavo.text.template_text import TemplateText\n"
            "print(RenderPool(TemplateText({'default': 'found'}, {})).render([{'role': 'user', 'content': 'x'}]))"
        )
        root = str(Path(octavo.__path__[0]).parent)
        result = subprocess.run(
            [sys.executable, "-c", script, root], capture_output=True, text=True, cwd=tmp_path, env={}, check=True
        )
        assert result.stdout == "found\n"

    def test_the_caller_imports_no_jinja(self) -> None:
        code = "import octavo.text.render_pool, octavo.llm, sys; print(*sys.modules)"
        loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
        assert "octavo.text.render_pool" in loaded
        assert "jinja2" not in loaded
