"""The tree of errors: the type says whose fault it is, and which exit code the command line gives.

Knows nothing of the rest of Octavo. `assert` is for our own bugs; whatever a user, a file or a machine can cause
is one of these.
"""

_NOTHING_ALLOWED = "no token is allowed at this position (allowed_token_ids, bad_words, min_tokens)"


class OctavoError(Exception):
    """The root. Everything that Octavo raises on purpose is one of these."""

    exit_code = 1


class RequestError(OctavoError, ValueError):
    """The request is wrong: a bad prompt or parameter. `param` names the field, when there is one."""

    exit_code = 2

    def __init__(self, message: str, param: str | None = None) -> None:
        super().__init__(message)
        self.param = param


class UnsupportedError(RequestError):
    """The request asks for something that this engine, or this model, does not offer."""


class ContextLengthError(RequestError):
    """The prompt, or the prompt with what may follow it, is longer than the model or the KV cache can ever hold."""


class NothingAllowedError(RequestError):
    """The request's own rules leave no token to choose. Nobody else's fault, and found only once it runs."""

    def __init__(self, message: str = _NOTHING_ALLOWED, param: str | None = "allowed_token_ids") -> None:
        super().__init__(message, param)


class QueueFullError(OctavoError):
    """The engine holds as many waiting requests as it may; the same request can succeed later."""


class ConfigError(OctavoError, ValueError):
    """The configuration is wrong. The message names the field, its value and what is allowed."""

    exit_code = 2


class DoesNotFitError(ConfigError):
    """The configuration is sound, but this machine has too little memory for it; the message has the numbers."""

    exit_code = 78


class ModelNotFoundError(OctavoError):
    """No model of that name: not a path, not built in, not to be had from the hub."""

    exit_code = 66


class ModelFormatError(OctavoError):
    """The model's files are broken, inconsistent or of a kind that is refused. The message names the thing."""

    exit_code = 65


class EngineError(OctavoError):
    """Our own fault, or the machine's: a step failed while this request was in it."""


class EngineStoppedError(EngineError):
    """The engine takes and answers nothing any more: it was shut down, or its thread has failed."""


def shown(value: object, most: int = 80) -> str:
    """`value` as a message shows it: its repr, cut to `most` characters."""
    try:
        text = repr(value)
    except ValueError:  # Python writes no number of more than 4,300 digits
        return f"<{type(value).__name__} of thousands of digits>"
    return text if len(text) <= most else text[:most] + "…"
