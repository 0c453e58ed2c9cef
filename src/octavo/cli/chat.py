"""`octavo chat`: a conversation with the model, in a terminal or from a script.

Knows what was said and how to leave out the oldest of it; how an answer is made is the engine's affair.
"""

import argparse
import contextlib
import re
import sys
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from octavo.cli.console import (
    add_session_flags,
    check_session_flags,
    note,
    opened,
    stream,
    summary,
    write,
)
from octavo.cli.flags import refuse_logprobs, sampling_from
from octavo.errors import RequestError, UnsupportedError
from octavo.outputs import RequestOutput
from octavo.params import SamplingParams
from octavo.tools.batch.requests import failure
from octavo.tools.interrupt import Interrupt

if TYPE_CHECKING:
    from octavo.llm_engine import LLMEngine

_HELP = """\
/reset         forget what was said
/system TEXT   set the system message (none without TEXT) and forget what was said
/help          this list
/quit          leave; Ctrl-D does so too
Ctrl-C stops an answer. A message that begins with a slash: put a space before it."""
_COMMAND = re.compile(r"/([a-z]+)(?:\s+(.*))?", re.DOTALL)
_ANSWER_TOKENS = (
    256  # room kept for an answer, at most a quarter of the model's length, where --max-tokens says nothing
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Talk to a chat model; /help lists what else can be said. Where standard input is no terminal, each of its "
        "lines is a message."
    )
    parser.add_argument("--system", metavar="TEXT", help="the system message")
    add_session_flags(parser)


def run(args: argparse.Namespace) -> int:
    config, params = check_session_flags(args), sampling_from(args)
    refuse_logprobs(params, "a conversation has no place for them; see octavo generate --chat --json")
    with opened(args, config) as engine:
        if engine.template_text is None:
            raise UnsupportedError(
                f"{config.model_config.model} has no chat template, so it cannot chat; octavo generate continues text"
            )
        chat = Chat(engine, params, args.system, is_verbose=args.verbose)
        if sys.stdin.isatty():
            if not args.quiet:
                note("/help for help")
            return _talk(chat)
        return _read(chat)


@dataclass(slots=True)
class History:
    """What was said: the system message, and each question with its answer."""

    system: str | None
    exchanges: list[tuple[str, str]] = field(default_factory=list)

    def messages(self, question: str, num_left_out: int = 0) -> list[dict[str, str]]:
        """The conversation with `question` at its end, without its `num_left_out` oldest exchanges."""
        said = [{"role": "system", "content": self.system}] if self.system is not None else []
        for asked, answered in self.exchanges[num_left_out:]:
            said += [{"role": "user", "content": asked}, {"role": "assistant", "content": answered}]
        return [*said, {"role": "user", "content": question}]


class Chat:
    """A conversation over an engine. `num_failed` counts the messages that got no answer."""

    def __init__(
        self, engine: "LLMEngine", params: SamplingParams, system: str | None, *, is_verbose: bool = False
    ) -> None:
        from octavo.llm import for_chat

        self.history = History(system)
        self.num_failed = 0
        self._engine = engine
        self._params = for_chat(params)
        self._is_verbose = is_verbose

    def handle(self, line: str, interrupt: Interrupt) -> bool:
        """Answer a message or obey a command. False: the conversation is over."""
        command = _COMMAND.fullmatch(line.rstrip())
        if command is None:
            if line.strip():
                self._answer(line.strip(), interrupt)
            return True
        match command[1], command[2]:
            case (("quit" | "exit"), None):
                return False
            case "help", None:
                note(_HELP)
            case "reset", None:
                self.history = History(self.history.system)
                note("(a new conversation)")
            case "system", text:
                self.history = History(text)
                note("(a new conversation, " + ("without a system message)" if text is None else "system message set)"))
            case _:
                note(f"no command {line.strip()!r}; /help lists them")
        return True

    def _answer(self, question: str, interrupt: Interrupt) -> None:
        """Stream an answer and remember it, as far as it got."""
        try:
            prompt, num_left_out = self._prompt(question)
            request_id = self._engine.add_request(prompt, self._params)
        except RequestError as error:
            self._fail(str(error))
            return
        if num_left_out:
            note(f"(the conversation is too long for the model: its oldest {num_left_out} exchanges are left out)")
            del self.history.exchanges[:num_left_out]
        output = stream(self._engine, request_id, interrupt, write)
        write("\n")
        self._remember(question, output)
        if self._is_verbose:
            note(summary(output))

    def _remember(self, question: str, output: RequestOutput) -> None:
        """Book an exchange, and say why the answer ended where it did not end by itself."""
        reason, text = failure(output), output.outputs[0].text
        if reason is not None:
            self._fail(reason)
            return
        match output.outputs[0].finish_reason:
            case "abort" if not text:
                note("(stopped before it began; the message is forgotten)")
                return
            case "abort":
                note("(stopped)")
            case "length":
                note("(cut off: " + ("--max-tokens)" if self._params.max_tokens else "the model's length)"))
        self.history.exchanges.append((question, text))

    def _prompt(self, question: str) -> tuple[list[int], int]:
        """The conversation as token ids, and how many of its oldest exchanges had to go to leave room for an answer."""
        longest = self._engine.resolved.limits.max_model_len
        room = self._params.max_tokens or min(_ANSWER_TOKENS, longest // 4)
        num_left_out = 0
        while True:
            prompt = self._engine.render_chat(self.history.messages(question, num_left_out))
            if len(prompt) + room <= longest or num_left_out == len(self.history.exchanges):
                return prompt, num_left_out
            num_left_out += 1

    def _fail(self, reason: str) -> None:
        self.num_failed += 1
        note(f"octavo: {reason}")


def _talk(chat: Chat) -> int:
    """A person at a terminal. Ctrl-C in an answer stops the answer; twice at the prompt, it leaves."""
    with contextlib.suppress(ImportError):
        import readline  # noqa: F401  (its import gives `input` line editing and a history)
    was_interrupted = False
    while True:
        try:
            line = _ask()
            was_interrupted = False
            with Interrupt() as interrupt:
                if not chat.handle(line, interrupt):
                    return 0
        except EOFError:
            note("")
            return 0
        except UnicodeDecodeError:
            note("octavo: that is not UTF-8")
        except KeyboardInterrupt:
            note("")
            if was_interrupted:
                return 0
            note("(Ctrl-C once more, Ctrl-D or /quit leaves)")
            was_interrupted = True


def _ask() -> str:
    """A line from the terminal. The prompt goes there and never into a file that takes the answers."""
    if sys.stdout.isatty():
        return input("> ")
    sys.stderr.write("> ")
    sys.stderr.flush()
    line = sys.stdin.readline()
    if not line:
        raise EOFError
    return line


def _read(chat: Chat) -> int:
    """A script: a message a line. 0 if every message was answered, else 1."""
    for number, line in enumerate(sys.stdin.buffer, start=1):
        try:
            text = line.decode("utf-8-sig" if number == 1 else "utf-8")
        except UnicodeDecodeError:
            raise RequestError(f"standard input: line {number} is not UTF-8") from None
        with Interrupt() as interrupt:
            if not chat.handle(text, interrupt):
                break
        if interrupt.is_set:
            return 130
    return 1 if chat.num_failed else 0
