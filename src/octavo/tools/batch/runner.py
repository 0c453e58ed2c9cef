"""Requests from a file of JSON lines through an engine, results to a file or a stream.

Knows the input's lines and the order of things; `result_file` knows how the output survives a kill.
"""

import json
import os
import shutil
import stat
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import IO, TYPE_CHECKING

from octavo.errors import RequestError
from octavo.outputs import RequestOutput
from octavo.params import SamplingParams
from octavo.tools.batch.requests import (
    BatchRequest,
    BatchResult,
    RequestId,
    as_chat,
    failure,
    result_json,
    run_requests,
)
from octavo.tools.batch.result_file import ResultFile, ResultStream
from octavo.tools.interrupt import Interrupt

if TYPE_CHECKING:
    from octavo.llm_engine import LLMEngine


@dataclass(frozen=True, slots=True)
class BatchOptions:
    """How a line becomes a request: `defaults` are the parameters that it leaves open.

    With `as_chat`, a prompt is a user's message, after the message `system` where there is one.
    """

    defaults: SamplingParams
    as_chat: bool = False
    system: str | None = None


@dataclass(slots=True)
class BatchTally:
    """What a file came to."""

    num_lines: int = 0
    num_pending: int = 0  # without a result at the start
    num_runnable: int = 0  # of those, the ones that are not seen to be wrong
    num_written: int = 0
    num_failed: int = 0
    num_tokens: int = 0
    is_interrupted: bool = False


class BatchRunner:
    """Generates what `results` lacks of the lines in `source`, which is read twice (see `rereadable`).

    Raises RequestError where two lines have one id.
    """

    def __init__(self, source: IO[bytes], options: BatchOptions, results: ResultFile | ResultStream) -> None:
        self._source, self._options, self._results = source, options, results
        self.tally = self._survey()

    def run(self, engine: "LLMEngine", interrupt: Interrupt, progress: Callable[[BatchTally], None]) -> None:
        """Run what is pending; `progress` is called after each result."""
        for request, result in run_requests(engine, self._pending(), interrupt):
            self._keep(request, result)
            progress(self.tally)
        self.tally.is_interrupted = interrupt.is_set

    def refuse(self) -> None:
        """Write the errors of what is pending where nothing of it is runnable: no engine is needed."""
        for request in self._pending():
            refusal = request.refusal()
            if refusal is not None:
                self._keep(request, refusal)

    def _survey(self) -> BatchTally:
        tally, numbers = BatchTally(), dict[RequestId, int]()
        for number, request in self._requests():
            if request.id in numbers:
                raise RequestError(f"lines {numbers[request.id]} and {number} have the same id {request.id!r}")
            numbers[request.id] = number
            tally.num_lines += 1
            if request.id not in self._results.done:
                tally.num_pending += 1
                tally.num_runnable += request.refusal() is None
        return tally

    def _pending(self) -> Iterator[BatchRequest]:
        return (request for _, request in self._requests() if request.id not in self._results.done)

    def _requests(self) -> Iterator[tuple[int, BatchRequest]]:
        """Each line of the file that is not blank: its number, counted from 1, and the request."""
        self._source.seek(0)
        index = 0
        for number, line in enumerate(self._source, start=1):
            if number == 1:
                line = line.removeprefix(b"\xef\xbb\xbf")  # the mark that some editors put before UTF-8
            if line.strip():
                blank = BatchRequest(index, f"line-{number}", {}, self._options.defaults)
                yield number, _request(line, blank, self._options)
                index += 1

    def _keep(self, request: BatchRequest, result: BatchResult) -> None:
        self._results.write(result_json(request, result))
        self.tally.num_written += 1
        self.tally.num_failed += failure(result) is not None
        if isinstance(result, RequestOutput):
            self.tally.num_tokens += len(result.outputs[0].token_ids)


def rereadable(file: IO[bytes]) -> IO[bytes]:
    """`file` where it can be read twice, else (a pipe) a copy of what is in it. Raises OSError."""
    if stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        return file
    copy = tempfile.TemporaryFile()  # noqa: SIM115
    shutil.copyfileobj(file, copy)
    return copy


def _request(line: bytes, blank: BatchRequest, options: BatchOptions) -> BatchRequest:
    """`blank` filled in from a line of JSON; where that cannot be, it says why."""
    try:
        fields = json.loads(line)
    except (ValueError, RecursionError) as error:  # ValueError: no JSON, no UTF-8, a number of 4,300 digits
        reason = "nested too deep" if isinstance(error, RecursionError) else str(error)
        return replace(blank, error=f"not a line of JSON: {reason}")
    if not isinstance(fields, dict):
        return replace(blank, error="not a JSON object")
    names = [name for name in ("id", "custom_id") if fields.get(name) is not None]
    request_id = fields[names[0]] if names else blank.id
    if len(names) > 1 or isinstance(request_id, bool) or not isinstance(request_id, (str, int)):
        rule = "must be text or a whole number, given once (as 'id' or 'custom_id')"
        return replace(blank, error=f"{names[-1]}: {rule}")
    request = replace(blank, id=request_id, fields=fields)
    try:
        is_prompt = options.as_chat and "prompt" in fields
        return replace(request, fields=as_chat(fields, options.system)) if is_prompt else request
    except RequestError as error:
        return replace(request, error=str(error))
