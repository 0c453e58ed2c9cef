"""serve.config: every field is a flag, every wrong value is refused by name, and keys come from three sources."""

import dataclasses
import subprocess
import sys

import pytest

from octavo.cli.flags import given
from octavo.cli.main import make_parser
from octavo.errors import ConfigError
from octavo.serve.config import ServerConfig, is_loopback


def test_every_field_is_a_flag_with_help():
    words = [
        "serve",
        "m",
        "--host",
        "::1",
        "--api-key",
        "a",
        "--api-key",
        "b",
        "--max-body-bytes",
        "1MiB",
        "--max-n",
        "4",
    ]
    args = make_parser("serve").parse_args([*words, "--drain-timeout", "2.5", "--allow-insecure", "--port", "0"])
    config = ServerConfig(**given(args, "serve."))
    assert config.api_key == ("a", "b")
    assert (config.max_body_bytes, config.max_n, config.drain_timeout) == (1 << 20, 4, 2.5)
    assert config.allow_insecure
    text = subprocess.run([sys.executable, "-m", "octavo", "serve", "--help"], capture_output=True, text=True).stdout
    for item in dataclasses.fields(ServerConfig):
        assert "--" + item.name.replace("_", "-") in text
        assert item.metadata["help"]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("port", -1), ("port", 65536), ("port", True), ("port", "80"), ("host", ""), ("host", "a b"),
        ("host", "a\r\nb"), ("log_prompts", True),
        ("max_body_bytes", "much"), ("max_body_bytes", 10), ("max_n", 0), ("max_logprobs", 21), ("drain_timeout", 0),
        ("drain_timeout", float("nan")), ("header_timeout", float("inf")), ("write_timeout", "1"), ("api_key", "abc"),
        ("allowed_hosts", ("a/b",)), ("allowed_origins", ("example.com",)), ("allow_insecure", 1),
        ("max_prompt_tokens", 0),
    ],
)  # fmt: skip
def test_wrong_values_are_refused_by_name(name, value):
    with pytest.raises(ConfigError, match=name):
        ServerConfig(**{name: value})


def test_keys_come_from_flags_file_and_environment(tmp_path):
    file = tmp_path / "keys"
    file.write_text("# ours\nbeta\n\n  gamma  \nalpha\n")
    config = ServerConfig(api_key=("alpha",), api_key_file=str(file))
    assert config.keys({"OCTAVO_API_KEY": "delta"}) == ("alpha", "beta", "gamma", "delta")
    assert ServerConfig().keys({}) == ()
    for text in ("", "# nothing\n"):
        file.write_text(text)
        with pytest.raises(ConfigError, match="no key"):
            config.keys({})
    with pytest.raises(ConfigError, match="api_key_file"):
        ServerConfig(api_key_file=str(tmp_path / "none")).keys({})
    for bad in ("a b", "", "x" * 600, "a\x01"):
        with pytest.raises(ConfigError, match="api_key"):
            ServerConfig().keys({"OCTAVO_API_KEY": bad})


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.5", "example.com", ""])
def test_an_address_that_others_reach_needs_a_key(host):
    assert not is_loopback(host)
    if not host:
        return
    config = ServerConfig(host=host)
    with pytest.raises(ConfigError, match="key"):
        config.check_exposure(())
    config.check_exposure(("key",))
    ServerConfig(host=host, allow_insecure=True).check_exposure(())


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.8.8", "localhost", "::1", "[::1]"])
def test_loopback_needs_none(host):
    assert is_loopback(host)
    ServerConfig(host=host).check_exposure(())


def test_the_command_refuses_to_be_open_to_others(tiny_model):
    command = [sys.executable, "-m", "octavo", "serve", str(tiny_model), "--host", "0.0.0.0", "--port", "0"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30)
    assert done.returncode == 2
    assert "--allow-insecure" in done.stderr


def test_importing_octavo_brings_no_server():
    code = (
        "import sys, octavo; octavo.LLM; octavo.AsyncLLM; import octavo.cli.generate; "
        "print(sorted(set(sys.modules) & {'starlette', 'uvicorn', 'pydantic', 'orjson', 'prometheus_client'}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == "[]"
