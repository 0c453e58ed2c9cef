"""The helper process that renders chat templates: what runs in it from its first line to its last.

A thread that is stuck inside one call of C cannot be stopped, a process can: by its parent, and by the kernel, at its
limits of CPU time and memory and when its parent is gone. Talks frames over stdin and stdout (`render_protocol`).
Imports no more than a template needs. Knows no HTTP.
"""

import ctypes
import json
import os
import resource
import signal
import sys
from collections.abc import Mapping
from contextlib import suppress
from typing import Any, Final

from octavo.errors import OctavoError, RequestError, UnsupportedError
from octavo.text.chat import ChatTemplate
from octavo.text.render_protocol import HEADER, RenderLimits

_MAX_FILES: Final = 16
_PR_SET_PDEATHSIG: Final = 1
_PR_SET_NO_NEW_PRIVS: Final = 38


def main() -> None:
    """Serve until stdin ends."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # Ctrl-C and systemd mean the whole group: the parent decides
    signal.signal(signal.SIGPROF, signal.SIG_DFL)  # a parent may ignore or block it, and that is inherited
    signal.pthread_sigmask(signal.SIG_SETMASK, [])
    _die_with_the_parent()
    nowhere = os.open(os.devnull, os.O_WRONLY)
    answers = os.dup(1)
    os.dup2(nowhere, 1)  # nothing but answers gets into the stream
    os.close(nowhere)
    first = _read_frame(0)
    if first is None:
        return
    start = json.loads(first)
    limits = RenderLimits(**start["limits"])
    _confine(limits)
    try:
        _arm(limits.compile_seconds)
        template = ChatTemplate(start["sources"], start["special_tokens"])
    except OctavoError as error:
        _write_frame(answers, _refusal(error))
        return
    _write_frame(answers, {"text": ""})
    while (frame := _read_frame(0, limits.cpu_seconds)) is not None:
        _write_frame(answers, _answer(template, frame))


def rendered(template: ChatTemplate, job: Mapping[str, Any]) -> str:
    """The prompt for a job's messages. Raises `RequestError`."""
    messages, options = job["messages"], {"tools": job["tools"], "kwargs": job["kwargs"]}
    if job["continue_final_message"]:
        text = _continued(template, messages, options)
    else:
        text = template.render(messages, add_generation_prompt=job["add_generation_prompt"], **options)
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise RequestError("messages: the chat template writes half of a surrogate pair", "messages") from error
    return text


def _continued(template: ChatTemplate, messages: list[Any], options: Mapping[str, Any]) -> str:
    """The prompt up to the end of the last message's content, so that the model writes on from there.

    Where that end is tells a mark behind the content: the content itself may stand elsewhere too ("im" is in
    "<|im_end|>"), or be empty. What is in front of the mark must be how the unmarked rendering begins.
    """
    whole = template.render(messages, add_generation_prompt=False, **options)
    content = messages[-1].get("content")
    param = "continue_final_message"
    if not isinstance(content, str):
        raise RequestError(f"{param}: the last message's content must be a string", param)
    mark = f"mark-{os.urandom(16).hex()}"
    marked = [*messages[:-1], {**messages[-1], "content": content + mark}]
    before, found, _ = template.render(marked, add_generation_prompt=False, **options).rpartition(mark)
    if found:
        for start in (before, before.rstrip()):  # some templates strip the content
            if whole.startswith(start):
                return start
    raise RequestError(f"{param}: the chat template does not show the last message as it is", param)


def _answer(template: ChatTemplate, frame: bytes) -> dict[str, Any]:
    try:
        return {"text": rendered(template, json.loads(frame))}
    except OctavoError as error:
        return _refusal(error)
    except (MemoryError, RecursionError):
        pass  # what filled the memory is freed when this block is left
    return _refusal(RequestError("messages: they need more memory than a chat template may use", "messages"))


def _refusal(error: OctavoError) -> dict[str, Any]:
    param = error.param if isinstance(error, RequestError) else None
    is_unsupported = isinstance(error, UnsupportedError)
    return {"error": {"message": str(error), "param": param, "is_unsupported": is_unsupported}}


def _die_with_the_parent() -> None:
    """The kernel kills this process when its parent ends, whatever it is doing then. Also: no set-uid program."""
    if sys.platform != "linux":
        return  # its input ends then, and a job ends by its limit
    prctl = ctypes.CDLL(None).prctl
    prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    with suppress(OSError), open("/proc/self/oom_score_adj", "w", encoding="ascii") as file:
        file.write("1000")  # where memory runs out, this process goes, and not its parent


def _confine(limits: RenderLimits) -> None:
    """Limits that hold even if a template should get out of its sandbox: of memory, of what it writes to files, of
    files that are open, and, unless it runs as root, of processes that it starts."""
    ceilings = {
        resource.RLIMIT_CORE: 0,
        resource.RLIMIT_FSIZE: 0,
        resource.RLIMIT_NOFILE: _MAX_FILES,
        resource.RLIMIT_NPROC: 0,
    }
    if sys.platform == "linux":
        with open("/proc/self/statm", encoding="ascii") as file:
            used = int(file.read().split()[0]) * resource.getpagesize()
        ceilings[resource.RLIMIT_AS] = used + limits.memory_bytes
    for what, most in ceilings.items():
        hard = resource.getrlimit(what)[1]
        most = most if hard == resource.RLIM_INFINITY else min(most, hard)
        resource.setrlimit(what, (most, most))


def _arm(cpu_seconds: float) -> None:
    """End this process after so much more CPU time of its own; waiting takes none, for the next job or for a processor.
    SIGPROF keeps its default action, which ends a process at any point of any code."""
    signal.setitimer(signal.ITIMER_PROF, cpu_seconds)


def _read_frame(stream: int, cpu_seconds: float = 0.0) -> bytes | None:
    """The next frame's bytes; None at the end of the stream. The CPU time is counted from its first byte."""
    header = _read_exactly(stream, HEADER.size)
    _arm(cpu_seconds)
    return None if header is None else _read_exactly(stream, HEADER.unpack(header)[0])


def _read_exactly(stream: int, num_bytes: int) -> bytes | None:
    data = bytearray()
    while len(data) < num_bytes:
        piece = os.read(stream, min(num_bytes - len(data), 1 << 20))
        if not piece:
            return None
        data += piece
    return bytes(data)


def _write_frame(stream: int, value: dict[str, Any]) -> None:
    data = json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode(errors="replace")
    frame = memoryview(HEADER.pack(len(data)) + data)
    while frame:
        frame = frame[os.write(stream, frame) :]
