"""serve.render_pool: the same prompts as in-process, options, refusals, and templates that do not start."""

import asyncio
import sys
from types import SimpleNamespace
from typing import Any

import pytest

from octavo.errors import EngineError, ModelFormatError, RequestError, UnsupportedError
from octavo.serve.render_pool import RenderPool, _Worker, _WorkerLostError
from octavo.text.chat import ChatTemplate
from tests.support.chat_templates import TEMPLATES, conversations
from tests.support.render_pools import PLAIN, SPECIAL, USER, Run, children, earlier_children, run, says, with_pool

__all__ = ["earlier_children", "run"]


def in_process(template: ChatTemplate, messages: Any, tools: Any) -> str:
    try:
        return template.render(messages, tools=tools)
    except RequestError as error:
        return f"{type(error).__name__} {error.param} {error}"


@pytest.mark.parametrize(
    ("run", "name"),
    [pytest.param("asyncio", "qwen", marks=pytest.mark.nightly), *(("uvloop", name) for name in TEMPLATES)],
    indirect=["run"],
)
def test_the_same_prompts_as_in_process(run: Run, name: str) -> None:
    async def check(pool: RenderPool) -> None:
        template = ChatTemplate({"default": TEMPLATES[name]}, SPECIAL)
        for messages, tools in conversations(60):
            expected = in_process(template, messages, tools)
            try:
                found = await pool.render(messages, tools=tools)
            except RequestError as error:
                found = f"{type(error).__name__} {error.param} {error}"
            assert found == expected

    with_pool(run, check, TEMPLATES[name])


class TestOptions:
    def test_kwargs_and_the_generation_prompt(self, run: Run) -> None:
        source = PLAIN + "{{ colour }}{% if add_generation_prompt %}<go>{% endif %}"

        async def check(pool: RenderPool) -> None:
            assert await pool.render(USER, kwargs={"colour": "red"}) == "Hired<go>"
            assert await pool.render(USER, add_generation_prompt=False) == "Hi"
            with pytest.raises(RequestError, match="messages is set by Octavo") as caught:
                await pool.render(USER, kwargs={"messages": []})
            assert caught.value.param == "chat_template_kwargs"

        with_pool(run, check, source)

    def test_refusals_keep_their_kind(self, run: Run) -> None:
        async def check(pool: RenderPool) -> None:
            with pytest.raises(UnsupportedError, match="image_url") as caught:
                await pool.render([{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}])
            assert caught.value.param == "messages"
            with pytest.raises(RequestError, match="cannot be given this"):
                await pool.render([{"role": "user", "content": b"bytes"}])
            with pytest.raises(RequestError, match="surrogate"):
                await pool.render(says("half"))
            assert await pool.render(USER) == "Hi"

        with_pool(run, check, "{{ '\\ud800' if messages[0].content == 'half' else messages[0].content }}")

    def test_two_templates(self) -> None:
        async def work() -> None:
            pool = RenderPool({"default": "plain", "tool_use": "{{ tools | length }} tools"}, {})
            await pool.start()
            assert await pool.render(USER) == "plain"
            assert await pool.render(USER, tools=[{"a": 1}]) == "1 tools"
            await pool.stop()

        asyncio.run(work())


class TestContinuing:
    CHATML = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"

    def continued(self, source: str, *conversations: Any) -> list[str]:
        """The prompts for these conversations, of one pool."""
        found = []

        async def check(pool: RenderPool) -> None:
            for messages in conversations:
                found.append(await pool.render(messages, add_generation_prompt=False, continue_final_message=True))

        with_pool(asyncio.run, check, source, num_workers=1)
        return found

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
    @pytest.mark.parametrize("source", ["{% for %}", "{{ " + "(" * 9000 + ")" * 9000 + " }}", "x" * 70_000])
    def test_broken_templates(self, run: Run, source: str) -> None:
        async def work() -> None:
            with pytest.raises(ModelFormatError, match=r"chat_template|chat template"):
                await RenderPool({"default": source}, SPECIAL).start()
            assert not children()

        run(work())

    def test_a_process_that_ended_before_it_was_asked_is_lost(self, run: Run) -> None:
        """With uvloop a write to its pipe would be a RuntimeError, which nobody expects."""
        process: Any = SimpleNamespace(stdin=SimpleNamespace(is_closing=lambda: True), stdout=object())

        async def work() -> None:
            with pytest.raises(_WorkerLostError):
                await _Worker(process).ask(b"{}")

        run(work())

    def test_no_process_to_be_had(self, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
        async def work() -> None:
            with pytest.raises(EngineError, match="helper process"):
                await RenderPool({"default": PLAIN}, SPECIAL).start()
            assert not children()

        monkeypatch.setattr(sys, "executable", "/nowhere/python")
        run(work())
        monkeypatch.setattr(sys, "executable", "/bin/false")
        run(work())
