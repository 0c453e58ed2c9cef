"""LLM: the engine's Python face for scripts. Knows LLMEngine; knows nothing of steps, blocks or tensors."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, cast

from octavo.config import EngineConfig
from octavo.errors import RequestError
from octavo.llm_engine import LLMEngine, Prompt
from octavo.outputs import RequestOutput
from octavo.params import UNSET, SamplingParams
from octavo.snapshot import EngineSnapshot, EngineStats

Message = Mapping[str, object]


class LLM:
    """A model to call from a script; one thread uses it. Also a context manager.

    Any field of EngineConfig is a keyword. `model` (default: the built-in "smollm2-135m") is a directory, a .gguf file,
    a Hugging Face id or a built-in name. Raises ConfigError for unknown fields and wrong values, ModelNotFoundError,
    ModelFormatError, and DoesNotFitError before any memory is taken.

    >>> with LLM("smollm2-135m", max_num_seqs=64) as llm:
    ...     outputs = llm.generate(["One, two,", "A, b,"], SamplingParams(temperature=0, max_tokens=8))
    ...     texts = [output.outputs[0].text for output in outputs]
    ...     answer = llm.chat([{"role": "user", "content": "Hello"}], SamplingParams(max_tokens=32))
    """

    def __init__(self, model: str | None = None, *, config: EngineConfig | None = None, **fields: Any) -> None:
        if config is not None and (fields or model is not None):
            raise RequestError("give either a config or its fields, not both", "config")
        named = fields if model is None else {"model": model, **fields}
        self.engine = LLMEngine(config or EngineConfig.from_dict(named))
        self._mail: dict[str, RequestOutput] = {}  # newest output by request, until its iterator fetches it

    def __enter__(self) -> "LLM":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.shutdown()

    def generate(
        self,
        prompts: Prompt | Sequence[Prompt],
        params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        progress: bool = True,
    ) -> list[RequestOutput]:
        """Complete one prompt or many, all at once, in the order given.

        `prompts`: text, token ids, {"prompt_token_ids": ids}, or a list of these. `params`: one for all or one each.
        A progress bar goes to stderr where that is a terminal. Raises RequestError before anything runs.
        """
        many = _as_prompts(prompts)
        each = [params] * len(many) if params is None or isinstance(params, SamplingParams) else list(params)
        if len(each) != len(many):
            raise RequestError(f"params: {len(each)} for {len(many)} prompts", "params")
        return self._run([partial(self.engine.add_request, p, s) for p, s in zip(many, each, strict=True)], progress)

    def generate_stream(self, prompt: Prompt, params: SamplingParams | None = None) -> Iterator[RequestOutput]:
        """Complete one prompt; an output after every step, each with the whole text so far.

        Leaving the iterator early aborts the request.
        """
        request_id = self.engine.add_request(prompt, params)
        try:
            is_finished = False
            while not is_finished:
                if request_id not in self._mail:
                    self._step()
                output = self._mail.pop(request_id, None)
                if output is not None:
                    is_finished = output.finished
                    yield output
        finally:
            self._discard([request_id])

    def chat(
        self,
        messages: Sequence[Message] | Sequence[Sequence[Message]],
        params: SamplingParams | None = None,
        *,
        tools: Sequence[Mapping[str, object]] | None = None,
        chat_template_kwargs: Mapping[str, object] | None = None,
        add_generation_prompt: bool = True,
    ) -> list[RequestOutput]:
        """Answer one conversation or many, by the model's own chat template. `max_tokens` defaults to None here."""
        is_single = bool(messages) and isinstance(messages[0], Mapping)
        many = cast("Sequence[Sequence[Message]]", [messages] if is_single else messages)
        prompts = [
            self.engine.render_chat(
                conversation,
                tools=tools,
                chat_template_kwargs=chat_template_kwargs,
                add_generation_prompt=add_generation_prompt,
            )
            for conversation in many
        ]
        return self.generate(prompts, for_chat(params), progress=False)

    def score(self, prompts: str | Sequence[str], continuations: str | Sequence[str]) -> list[float]:
        """Log-likelihood (natural log, summed over tokens) of each continuation after its prompt.

        One prompt may go with many continuations and the other way round. The seam is where the prompt's own tokens
        end in the tokens of prompt + continuation. Raises RequestError for an empty prompt or continuation.
        """
        before = [prompts] if isinstance(prompts, str) else list(prompts)
        after = [continuations] if isinstance(continuations, str) else list(continuations)
        count = max(len(before), len(after))
        before, after = before * (count if len(before) == 1 else 1), after * (count if len(after) == 1 else 1)
        if len(before) != len(after):
            raise RequestError(f"continuations: {len(after)} for {len(before)} prompts", "continuations")
        encode = self.engine.tokenizer.encode
        pairs = [(encode(prompt + more), len(encode(prompt))) for prompt, more in zip(before, after, strict=True)]
        for whole, seam in pairs:
            if not 0 < seam < len(whole):
                raise RequestError(
                    "score: the prompt and the continuation need at least one token each", "continuations"
                )
        logprobs = self._score([whole for whole, _ in pairs])
        return [sum(scores[seam - 1 :]) for scores, (_, seam) in zip(logprobs, pairs, strict=True)]

    def perplexity(self, texts: str | Sequence[str]) -> list[float]:
        """exp(mean negative log-likelihood per token) of each text.

        A text longer than the model is cut into pieces of `max_model_len` tokens, each scored by itself; the first
        token of a piece is context only. Raises RequestError for texts of fewer than two tokens.
        """
        longest = self.engine.resolved.limits.max_model_len
        pieces: list[list[int]] = []
        owners: list[int] = []
        many = [texts] if isinstance(texts, str) else list(texts)
        for owner, text in enumerate(many):
            ids = self.engine.tokenizer.encode(text)
            parts = [ids[first : first + longest] for first in range(0, len(ids), longest)]
            scored = [part for part in parts if len(part) > 1]
            if not scored:
                raise RequestError("perplexity: a text needs at least two tokens", "texts")
            pieces += scored
            owners += [owner] * len(scored)
        per_text: list[list[float]] = [[] for _ in many]
        for owner, scores in zip(owners, self._score(pieces), strict=True):
            per_text[owner] += scores
        return [math.exp(-sum(scores) / len(scores)) for scores in per_text]

    def get_stats(self) -> EngineStats:
        """Counters and gauges of the engine."""
        return self.engine.get_stats()

    def inspect(self) -> EngineSnapshot:
        """The inside of the engine between two steps: sequences, block tables, blocks. See `LLMEngine.inspect`."""
        return self.engine.inspect()

    def reset_prefix_cache(self) -> None:
        """Forget every cached prefix that no running request uses."""
        self.engine.reset_prefix_cache()

    def profile(self, path: str | Path) -> AbstractContextManager[Mapping[str, float]]:
        """Write a Chrome trace (for chrome://tracing or Perfetto) of every step within the `with` block to `path`.

        The block gets the seconds spent in each phase of a step, filled in at its end. Raises RequestError where no
        file can be written there or a profile is being taken already, OctavoError where writing fails.

        >>> with LLM() as llm, llm.profile("trace.json") as seconds:  # doctest: +SKIP
        ...     llm.generate("The capital of France is")
        >>> sorted(seconds)  # doctest: +SKIP
        ['commit', 'pack', 'plan', 'run', 'sample']
        """
        return self.engine.profile(path)

    def shutdown(self) -> None:
        """Abort whatever is unfinished, drop the cached prefixes, and end the helper process of `chat`."""
        self._discard(self.engine.unfinished_ids())
        self.engine.reset_prefix_cache()
        self.engine.close_renderer()

    def _score(self, sequences: Sequence[list[int]]) -> list[list[float]]:
        """Logprob of every token but the first, of each token sequence."""
        outputs = self._run([partial(self.engine.add_score_request, ids) for ids in sequences], False)
        scores = []
        for output in outputs:
            error = output.outputs[0].error
            if error is not None:
                raise error
            entries = zip(output.prompt_token_ids[1:], (output.prompt_logprobs or [])[1:], strict=True)
            scores.append([entry[token].logprob for token, entry in entries if entry is not None])
        return scores

    def _run(self, submissions: Sequence[Callable[[], str]], progress: bool) -> list[RequestOutput]:
        """Submit all, run all to the end. Nothing is left behind when one is refused or the run is interrupted."""
        ids: list[str] = []
        finished: dict[str, RequestOutput] = {}
        try:
            for submit in submissions:
                ids.append(submit())
            waiting = set(ids)
            with _Progress(len(ids), progress) as bar:
                while waiting:
                    for output in self._step():
                        if output.finished and output.request_id in waiting:
                            waiting.remove(output.request_id)
                            finished[output.request_id] = output
                            bar.advance(len(output.outputs[0].token_ids))
        finally:
            self._discard(ids)
        return [finished[request_id] for request_id in ids]

    def _step(self) -> list[RequestOutput]:
        """One step, whose outputs also wait in the mail for whichever iterator they belong to."""
        outputs = self.engine.step()
        self._mail.update({output.request_id: output for output in outputs})
        return outputs

    def _discard(self, request_ids: Sequence[str]) -> None:
        """Forget requests, unfinished or not: nobody waits for them."""
        for request_id in request_ids:
            self.engine.discard_request(request_id)
            self._mail.pop(request_id, None)


def for_chat(params: SamplingParams | None) -> SamplingParams:
    """The same parameters, with `max_tokens` up to the model's length unless it was given."""
    given = {name: value for name, value in vars(params or SamplingParams()).items() if value is not UNSET}
    return SamplingParams(**{"max_tokens": None, **given})


def _as_prompts(prompts: Prompt | Sequence[Prompt]) -> list[Prompt]:
    """One prompt or many, as a list: a list of numbers is one prompt."""
    match prompts:
        case str() | Mapping():
            return [prompts]
        case [int(), *_]:
            return [prompts]  # type: ignore[list-item]
        case list() | tuple() if prompts:
            return list(prompts)
    raise RequestError("prompt: is empty, or not text, token ids or a list of these", "prompt")


class _Progress:
    """A bar of finished requests and tokens per second on stderr, where that is a terminal."""

    def __init__(self, total: int, is_wanted: bool) -> None:
        self._bar: Any = None
        self._total = total
        self._is_wanted = is_wanted and total > 1
        self._num_tokens = 0

    def __enter__(self) -> "_Progress":
        if self._is_wanted:
            from rich.console import Console
            from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

            console = Console(stderr=True)
            columns = (
                "requests",
                BarColumn(),
                MofNCompleteColumn(),
                TimeElapsedColumn(),
                TextColumn("{task.fields[rate]}"),
            )
            self._bar = Progress(*columns, console=console, transient=True, disable=not console.is_terminal)
            self._bar.add_task("requests", total=self._total, rate="")
            self._bar.start()
        return self

    def advance(self, num_tokens: int) -> None:
        """One request more is finished; it brought `num_tokens`."""
        if self._bar is not None:
            self._num_tokens += num_tokens
            task = self._bar.tasks[0]
            rate = f"{self._num_tokens / max(task.elapsed or 0.0, 1e-9):,.0f} tok/s"
            self._bar.update(task.id, advance=1, rate=rate)

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.stop()
