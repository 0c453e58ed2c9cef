"""SamplingParams: what a request asks of the sampler and when it stops. Validated on construction.

A field that is not given holds `UNSET` until LLMEngine resolves it (`resolved`): from the model's own
`generation_config.json` where that has one, else from `DEFAULTS`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final, NoReturn

from octavo.errors import RequestError, UnsupportedError, shown

MAX_LOGPROBS: Final = 20
MAX_STOP_STRINGS: Final = 16
MAX_STOP_STRING_CHARS: Final = 256
MAX_IDS: Final = 65_536  # entries in any list of token ids
MAX_COUNT: Final = 2**31 - 1  # of anything: a number above it could not be held by the index arrays
MAX_NUMBER: Final = 3.4e38  # what a float32 holds


class _Unset:
    """The mark of a field that was not given; there is one, `UNSET`."""

    def __repr__(self) -> str:
        return "UNSET"

    def __bool__(self) -> bool:
        return False


UNSET: Final[Any] = _Unset()

DEFAULTS: Final[Mapping[str, Any]] = {
    "n": 1, "best_of": None, "temperature": 1.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0,
    "presence_penalty": 0.0, "frequency_penalty": 0.0, "repetition_penalty": 1.0, "seed": None,
    "stop": None, "stop_token_ids": None, "include_stop_str_in_output": False, "ignore_eos": False,
    "max_tokens": 16, "min_tokens": 0, "logprobs": None, "prompt_logprobs": None, "logit_bias": None,
    "bad_words": None, "allowed_token_ids": None, "structured_outputs": None, "skip_special_tokens": True,
    "spaces_between_special_tokens": True, "truncate_prompt_tokens": None,
}  # fmt: skip

_NULLABLE: Final = {name for name, value in DEFAULTS.items() if value is None} | {"max_tokens"}

# generation_config.json fields that a request's own defaults come from
MODEL_DEFAULTS: Final = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty")


def _unset(help: str) -> Any:
    """A field that is not given by default and carries its own help text, for `--help`."""
    return field(default=UNSET, metadata={"help": help})


@dataclass(frozen=True, kw_only=True)
class SamplingParams:
    """How one request is sampled.

    Order of filters: penalties, bias and masks, temperature, top-k, top-p, min-p. `temperature=0` is greedy. `top_k` 0
    or -1 is off. Top-p keeps the smallest set whose probability reaches p, never fewer than one token. `logprobs=k`
    asks for the chosen token and the k most likely at each position (0: the chosen one alone). `max_tokens=None` means
    up to the model's length. `min_tokens` holds back every way to stop until that many tokens exist.

    A field that is not given comes from the model's `generation_config.json`, else from `DEFAULTS`: `temperature=1.0`,
    `top_k=0`, `top_p=1.0`, `min_p=0.0`, no penalties, `max_tokens=16`, no log-probabilities, a seed drawn anew.
    Log-probabilities are natural logarithms, of the model's distribution before temperature and filters.

    Raises RequestError (a ValueError) that names the field, and UnsupportedError for what does not exist yet.

    >>> params = SamplingParams(temperature=0.7, top_p=0.9, seed=7, max_tokens=64, stop=["END"], logprobs=2)
    >>> params.temperature, params.stop_strings, params.resolved().top_k
    (0.7, ('END',), 0)
    """

    n: int = _unset("sequences to generate for one prompt")
    best_of: int | None = _unset("sequences to generate, of which the n best are kept")
    temperature: float = _unset("0 = always the most likely token; higher is more varied")
    top_k: int = _unset("keep the k most likely tokens; 0 or -1 = all")
    top_p: float = _unset("keep the smallest set of tokens whose probability reaches p")
    min_p: float = _unset("drop tokens less likely than min_p times the most likely")
    presence_penalty: float = _unset("subtracted once from the logit of each generated token, -2 to 2")
    frequency_penalty: float = _unset("subtracted from a token's logit each time it was generated, -2 to 2")
    repetition_penalty: float = _unset("divides the logits of tokens in prompt and output; above 1 discourages them")
    seed: int | None = _unset("makes sampling repeatable (default: drawn anew for each request)")
    stop: str | Sequence[str] | None = _unset("text that ends the output")
    stop_token_ids: Sequence[int] | None = _unset("token ids that end the output")
    include_stop_str_in_output: bool = _unset("keep the stop text in the output")
    ignore_eos: bool = _unset("generate on past the end-of-text token")
    max_tokens: int | None = _unset("most tokens to generate; none = up to the model's length")
    min_tokens: int = _unset("tokens to generate before anything may end the output")
    logprobs: int | None = _unset("log-probabilities of the chosen and the k most likely tokens")
    prompt_logprobs: int | None = _unset("the same for the prompt's tokens")
    logit_bias: Mapping[int, float] | None = _unset("token ids and what is added to their logits, -100 to 100")
    bad_words: Sequence[str] | None = _unset("text that must not be generated")
    allowed_token_ids: Sequence[int] | None = _unset("the only token ids that may be generated")
    structured_outputs: Mapping[str, Any] | None = _unset("schema, regex, choice or grammar for the output")
    skip_special_tokens: bool = _unset("leave special tokens out of the text")
    spaces_between_special_tokens: bool = _unset("put spaces between special tokens in the text")
    truncate_prompt_tokens: int | None = _unset("keep only the last tokens of the prompt, this many")

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if value is UNSET or (value is None and name in _NULLABLE):
                continue
            _CHECKS[name](name, value)
        if self.max_tokens and self.min_tokens and self.min_tokens > self.max_tokens:
            _refuse("min_tokens", self.min_tokens, f"must be at most max_tokens={self.max_tokens}")

    def resolved(self, model_defaults: Mapping[str, Any] | None = None) -> "SamplingParams":
        """All fields set: own value, else the model's (`generation_config.json`), else `DEFAULTS`.

        Of the model's, only the fields named in `MODEL_DEFAULTS` count, and those that are not null.
        """
        given = {name: value for name, value in (model_defaults or {}).items() if name in MODEL_DEFAULTS}
        unset = [name for name, value in vars(self).items() if value is UNSET]
        return replace(self, **{name: DEFAULTS[name] if given.get(name) is None else given[name] for name in unset})

    @property
    def stop_strings(self) -> tuple[str, ...]:
        """`stop` as a tuple, whichever way it was given."""
        if not self.stop:
            return ()
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop)


def _refuse(name: str, value: Any, allowed: str) -> NoReturn:
    raise RequestError(f"{name}={shown(value)}: {allowed}", name)


def _is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _integer(minimum: int, maximum: int = MAX_COUNT) -> Any:
    def check(name: str, value: Any) -> None:
        if not _is_int(value) or not minimum <= value <= maximum:
            _refuse(name, value, f"must be a whole number, at least {minimum} and at most {maximum}")

    return check


def _number(low: float, high: float, *, above_low: bool = False) -> Any:
    upper = "" if high == MAX_NUMBER else f" to {high:g}"
    rule = f"must be a finite number {'above' if above_low else 'from'} {low:g}{upper}"

    def check(name: str, value: Any) -> None:
        is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
        if not is_number or not low <= value <= high or (above_low and value == low):  # NaN fails the comparison
            _refuse(name, value, rule)

    return check


def _boolean(name: str, value: Any) -> None:
    if not isinstance(value, bool):
        _refuse(name, value, "must be true or false")


def _strings(name: str, value: Any) -> None:
    if not isinstance(value, (list, tuple)) or not all(isinstance(item, str) for item in value):
        _refuse(name, value, "must be a list of strings")
    if len(value) > MAX_STOP_STRINGS:
        _refuse(name, value, f"must hold at most {MAX_STOP_STRINGS} strings")
    if not all(1 <= len(item) <= MAX_STOP_STRING_CHARS for item in value):
        _refuse(name, value, f"each string must have 1 to {MAX_STOP_STRING_CHARS} characters")
    if any("\ud800" <= char <= "\udfff" for item in value for char in item):
        _refuse(name, value, "must be text, without lone surrogates")


def _stop(name: str, value: Any) -> None:
    _strings(name, [value] if isinstance(value, str) else value)


def _token_ids(name: str, value: Any) -> None:
    if not isinstance(value, (list, tuple)) or not all(_is_int(item) and item >= 0 for item in value):
        _refuse(name, value, "must be a list of token ids (whole numbers, at least 0)")
    if len(value) > MAX_IDS:
        _refuse(name, value, f"must hold at most {MAX_IDS} ids")


def _allowed_ids(name: str, value: Any) -> None:
    _token_ids(name, value)
    if not value:
        _refuse(name, value, "must allow at least one token")


def _bias(name: str, value: Any) -> None:
    if not isinstance(value, Mapping) or len(value) > MAX_IDS:
        _refuse(name, value, f"must map at most {MAX_IDS} token ids to numbers")
    for token, amount in value.items():
        if not _is_int(token) or token < 0:
            _refuse(name, token, "its keys must be token ids (whole numbers, at least 0)")
        if isinstance(amount, bool) or not isinstance(amount, (int, float)) or not -100 <= amount <= 100:
            _refuse(name, amount, "its values must be numbers from -100 to 100")


def _only_one(name: str, value: Any) -> None:
    _integer(1)(name, value)
    if value != 1:
        raise UnsupportedError(f"{name}={shown(value)}: more than one sequence a request is not offered yet", name)


def _not_yet(name: str, _value: Any) -> None:
    raise UnsupportedError(f"{name} is not offered yet", name)


_CHECKS: Final[dict[str, Any]] = {
    "n": _only_one,
    "best_of": _only_one,
    "temperature": _number(0.0, MAX_NUMBER),
    "top_k": _integer(-1),
    "top_p": _number(0.0, 1.0, above_low=True),
    "min_p": _number(0.0, 1.0),
    "presence_penalty": _number(-2.0, 2.0),
    "frequency_penalty": _number(-2.0, 2.0),
    "repetition_penalty": _number(0.0, MAX_NUMBER, above_low=True),
    "seed": _integer(-(2**63), 2**64 - 1),
    "stop": _stop,
    "stop_token_ids": _token_ids,
    "include_stop_str_in_output": _boolean,
    "ignore_eos": _boolean,
    "max_tokens": _integer(1),
    "min_tokens": _integer(0),
    "logprobs": _integer(0, MAX_LOGPROBS),
    "prompt_logprobs": _integer(0, MAX_LOGPROBS),
    "logit_bias": _bias,
    "bad_words": _strings,
    "allowed_token_ids": _allowed_ids,
    "structured_outputs": _not_yet,
    "skip_special_tokens": _boolean,
    "spaces_between_special_tokens": _boolean,
    "truncate_prompt_tokens": _integer(1),
}
