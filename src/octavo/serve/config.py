"""The server's configuration, beside EngineConfig: where it listens, who may send requests, and every limit.

Frozen, validated on construction; each field is a flag of the same name with its help text. Knows no server.
"""

import ipaddress
import math
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Final, NoReturn

from octavo.config import parse_bytes
from octavo.errors import ConfigError, shown

MAX_NUMBER: Final = 2**31 - 1
_SIZES: Final = ("max_body_bytes", "max_header_bytes")
_COUNTS: Final = (
    "max_prompt_tokens", "max_n", "max_best_of", "max_logprobs", "max_prompts", "max_concurrent_requests",
    "max_connections",
)  # fmt: skip
_SECONDS: Final = (
    "header_timeout", "body_timeout", "write_timeout", "idle_timeout", "keep_alive", "drain_timeout", "stall_timeout",
)  # fmt: skip
_HOST: Final = re.compile(r"[A-Za-z0-9._*:\[\]-]{1,255}")
_ORIGIN: Final = re.compile(r"\*|[a-z][a-z0-9+.-]*://[A-Za-z0-9._:\[\]-]{1,255}")


def _flag(default: Any, help: str) -> Any:
    return field(default=default, metadata={"help": help})


@dataclass(frozen=True, kw_only=True)
class ServerConfig:
    """Raises ConfigError that names the field, its value and what is allowed. Times are seconds."""

    host: str = _flag("127.0.0.1", "address or name to listen on")
    port: int = _flag(8000, "port to listen on; 0 = any that is free")
    api_key: tuple[str, ...] = _flag(
        (), "a key that clients must send; may be given several times (better: --api-key-file or $OCTAVO_API_KEY)"
    )
    api_key_file: str | None = _flag(None, "file with a key on each line")
    allow_insecure: bool = _flag(False, "listen on an address that others can reach without any key")
    allowed_hosts: tuple[str, ...] = _flag(
        (), "value of the Host header to accept beside the loopback names; '*' = any (default on other addresses)"
    )
    allowed_origins: tuple[str, ...] = _flag((), "origin whose web pages may call this server; '*' = any")
    max_body_bytes: int | str = _flag("4MiB", "largest body of a request")
    max_header_bytes: int | str = _flag("16KiB", "largest head of a request")
    max_prompt_tokens: int | None = _flag(None, "longest prompt in tokens (default: what the model takes)")
    max_n: int = _flag(16, "most choices a request may ask for")
    max_best_of: int = _flag(16, "most candidates a request may ask for")
    max_logprobs: int = _flag(20, "most log-probabilities a position, up to 20")
    max_prompts: int = _flag(256, "most prompts in one request, and most sequences (prompts x n)")
    max_concurrent_requests: int = _flag(1024, "most requests that are being answered or wait, whoever asks")
    max_connections: int = _flag(2048, "most connections")
    header_timeout: float = _flag(10.0, "seconds a client may take to send a request's head")
    body_timeout: float = _flag(
        10.0, "seconds a client may pause in a request's body; after them it must come at 1 KiB/s"
    )
    write_timeout: float = _flag(30.0, "seconds a client may take nothing of its answer before it is cut off")
    idle_timeout: float = _flag(75.0, "seconds a connection is kept open between two requests")
    keep_alive: float = _flag(10.0, "seconds without a token after which a stream gets a comment line")
    drain_timeout: float = _flag(30.0, "seconds that running requests get to finish after SIGTERM")
    stall_timeout: float = _flag(120.0, "seconds without a step, with work to do, after which liveness is false")
    log_requests: bool = _flag(False, "write a line for each request: route, status, tokens and times")
    log_prompts: bool = _flag(False, "write prompts into that line; else no prompt is ever logged")

    def __post_init__(self) -> None:
        self._check_kinds()
        for name in _SIZES:
            object.__setattr__(self, name, self._bytes(name))
        for name in _COUNTS:
            self._check(name, vars(self)[name] is None or 1 <= vars(self)[name] <= MAX_NUMBER, "must be at least 1")
        for name in _SECONDS:
            value = vars(self)[name]
            self._check(name, math.isfinite(value) and 0 < value <= 1e6, "must be a number of seconds above 0")
        self._check("port", 0 <= self.port <= 65535, "must be from 0 to 65535")
        self._check("max_logprobs", self.max_logprobs <= 20, "must be at most 20")
        self._check("host", bool(_HOST.fullmatch(self.host)), "must be an address or a name")
        self._check("log_prompts", self.log_requests or not self.log_prompts, "goes with log_requests")
        for host in self.allowed_hosts:
            self._check("allowed_hosts", bool(_HOST.fullmatch(host)), "must be a host name, or '*'")
        for origin in self.allowed_origins:
            self._check("allowed_origins", bool(_ORIGIN.fullmatch(origin)), "must be like http://name:port, or '*'")

    def keys(self, environment: Mapping[str, str] | None = None) -> tuple[str, ...]:
        """Every key in force, from flags, file and $OCTAVO_API_KEY. Raises ConfigError for a bad or empty file."""
        environ = os.environ if environment is None else environment
        keys = [*self.api_key, *self._keys_in_file()]
        if "OCTAVO_API_KEY" in environ:
            keys.append(environ["OCTAVO_API_KEY"].strip())
        for key in keys:
            if not key or len(key) > 512 or not key.isprintable() or any(char.isspace() for char in key):
                raise ConfigError("api_key: a key must have 1 to 512 printable characters and no spaces")
        return tuple(dict.fromkeys(keys))

    def check_exposure(self, keys: tuple[str, ...]) -> None:
        """Raise ConfigError where strangers could reach the server and no key is asked of them."""
        if not keys and not self.allow_insecure and not is_loopback(self.host):
            raise ConfigError(
                f"host={self.host!r}: others can reach this address, so a key is needed (--api-key-file, --api-key or "
                "$OCTAVO_API_KEY), or --allow-insecure"
            )

    def _keys_in_file(self) -> list[str]:
        if self.api_key_file is None:
            return []
        try:
            lines = Path(self.api_key_file).read_text(encoding="utf-8").split("\n")
        except (OSError, ValueError) as error:
            raise ConfigError(f"api_key_file: cannot read it: {type(error).__name__}") from None
        keys = [line.strip() for line in lines if line.strip() and not line.lstrip().startswith("#")]
        if not keys:
            raise ConfigError("api_key_file: there is no key in it")
        return keys

    def _check_kinds(self) -> None:
        kinds: dict[str, tuple[type, ...]] = {
            "str": (str,), "int": (int,), "bool": (bool,), "float": (float, int), "int | str": (int, str),
            "str | None": (str, type(None)), "int | None": (int, type(None)), "tuple[str, ...]": (tuple,),
        }  # fmt: skip
        for item in fields(self):
            kind = item.type.__name__ if isinstance(item.type, type) else str(item.type)
            kind = "tuple[str, ...]" if kind == "tuple" else kind
            value = vars(self)[item.name]
            if isinstance(value, list):
                object.__setattr__(self, item.name, value := tuple(value))
            is_wrong_bool = isinstance(value, bool) and kind != "bool"
            self._check(item.name, isinstance(value, kinds[kind]) and not is_wrong_bool, f"must be {kind}")

    def _bytes(self, name: str) -> int:
        try:
            value = parse_bytes(vars(self)[name])
        except ValueError as error:
            self._refuse(name, str(error))
        self._check(name, 1024 <= value <= MAX_NUMBER, "must be at least 1 KiB and below 2 GiB")
        return value

    def _check(self, name: str, is_good: bool, allowed: str) -> None:
        if not is_good:
            self._refuse(name, allowed)

    def _refuse(self, name: str, allowed: str) -> NoReturn:
        raise ConfigError(f"{name}={shown(vars(self)[name])}: {allowed}")


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach `host`."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False
