"""How byte-level vocabularies cut text before merging: the rules that GGUF names in `tokenizer.ggml.pre`.

Knows the published patterns of each family (the `pre_tokenizer` of its tokenizer.json, which llama.cpp's table names)
and two habits that go with them: whether a whole word that is a token skips the merges, and whether BOS is put in
front when the file does not say. Builds nothing else.
"""

from dataclasses import dataclass
from typing import Final

from tokenizers import Regex, pre_tokenizers

from octavo.errors import ModelFormatError


@dataclass(frozen=True, slots=True)
class CutRule:
    """`patterns` are applied one after the other; what matches, and what lies between matches, become pieces."""

    patterns: tuple[str, ...]
    ignore_merges: bool = False
    adds_bos: bool = False

    def pre_tokenizer(self) -> pre_tokenizers.PreTokenizer:
        """The patterns, and then every byte as the character that stands for it."""
        splits = [pre_tokenizers.Split(Regex(pattern), behavior="isolated") for pattern in self.patterns]
        return pre_tokenizers.Sequence([*splits, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])


_CONTRACTION: Final = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_SPACES: Final = r"|\s*[\r\n]+|\s+(?!\S)|\s+"
_SYMBOLS: Final = r"| ?[^\s\p{L}\p{N}]+[\r\n]*"
_WORD: Final = r"|[^\r\n\p{L}\p{N}]?\p{L}+"
_GPT2: Final = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_LLAMA3: Final = _CONTRACTION + _WORD + r"|\p{N}{1,3}" + _SYMBOLS + _SPACES
_QWEN2: Final = _CONTRACTION + _WORD + r"|\p{N}" + _SYMBOLS + _SPACES
_QWEN35: Final = _CONTRACTION + r"|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*" + _SPACES
# Words of the tekken kind: capitals, then small letters; or capitals alone.
_UPPER: Final = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]"
_LOWER: Final = r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_TITLE: Final = rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+"
_CAPITALS: Final = rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*"
_SYMBOLS_SLASH: Final = r"| ?[^\s\p{L}\p{N}]+[\r\n/]*"
_TEKKEN: Final = f"{_TITLE}|{_CAPITALS}" + r"|\p{N}" + _SYMBOLS_SLASH + _SPACES
_GPT4O: Final = f"{_TITLE}{_CONTRACTION}?|{_CAPITALS}{_CONTRACTION}?" + r"|\p{N}{1,3}" + _SYMBOLS_SLASH + _SPACES
_BAILING: Final = (
    r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+"
)
_SEED: Final = _CONTRACTION + _WORD + r"|\p{N}| ?[^\s\p{L}\p{N}\r\n]+" + _SPACES

# The letters that DeepSeek LLM lists one range at a time: Latin, Greek, Cyrillic, Armenian, Georgian, Cherokee, ...
_DEEPSEEK_LETTERS: Final = (
    "A-Za-z\u00b5\u00c0-\u00d6\u00d8-\u00f6\u00f8-\u01ba\u01bc-\u01bf\u01c4-\u0293\u0295-\u02af\u0370-\u0373"
    "\u0376\u0377\u037b-\u037d\u037f\u0386\u0388-\u038a\u038c\u038e-\u03a1\u03a3-\u03f5\u03f7-\u0481\u048a-"
    "\u052f\u0531-\u0556\u10a0-\u10c5\u13a0-\u13f5\u13f8-\u13fd\u1c90-\u1cba\u1cbd-\u1cbf\u1d00-\u1d2b\u1d6b-"
    "\u1d77\u1d79-\u1d9a\u1e00-\u1f15\u1f18-\u1f1d\u1f20-\u1f45\u1f48-\u1f4d\u1f50-\u1f57\u1f59\u1f5b\u1f5d"
    "\u1f5f-\u1f7d\u1f80-\u1fb4\u1fb6-\u1fbc\u1fbe\u1fc2-\u1fc4\u1fc6-\u1fcc\u1fd0-\u1fd3\u1fd6-\u1fdb\u1fe0-"
    "\u1fec\u1ff2-\u1ff4\u1ff6-\u1ffc\u2102\u2107\u210a-\u2113\u2115\u2119-\u211d\u2124\u2126\u2128\u212a-"
    "\u212d\u212f-\u2134\u2139\u213c-\u213f\u2145-\u2149\u214e\u2183\u2184\u2c00-\u2c7b\u2c7e-\u2ce4\u2ceb-"
    "\u2cee\u2cf2\u2cf3\ua640-\ua66d\ua680-\ua69b\ua722-\ua76f\ua771-\ua787\ua78b-\ua78e\uab70-\uabbf\ufb00-"
    "\ufb06\ufb13-\ufb17\uff21-\uff3a\uff41-\uff5a\U00010400-\U0001044f\U000104b0-\U000104d3\U000104d8-"
    "\U000104fb\U00010c80-\U00010cb2\U00010cc0-\U00010cf2\U000118a0-\U000118df\U0001e900-\U0001e943"
)
_CJK_AND_MORE: Final = "[\u4e00-\u9fa5\u0800-\u4e00\uac00-\ud7ff]+"
_DEEPSEEK_LLM: Final = (
    r"[\r\n]",
    rf"\s?[{_DEEPSEEK_LETTERS}]+",
    "\\s?[!-/:-~\uff01-\uff0f\uff1a-\uff5e\u2018-\u201f\u3000-\u3002]+",
    r"\s+$",
    _CJK_AND_MORE,
    r"\p{N}+",
)
_DEEPSEEK_CODER: Final = (r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", _CJK_AND_MORE, r"\p{N}")
_DEEPSEEK_V3: Final = (
    r"\p{N}{1,3}",
    "[\u4e00-\u9fa5\u3040-\u309f\u30a0-\u30ff]+",
    r"""[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"""
    r"| ?[\p{P}\p{S}]+[\r\n]*" + _SPACES,
)
# What llama.cpp does for files from before `tokenizer.ggml.pre` existed, or that say "default".
_DEFAULT: Final = (r"[\p{P}\$\+<=>\^~\|]+", _GPT2, r"\p{N}+", r"[0-9][0-9][0-9]")
_FALCON: Final = (r"[\p{P}\$\+<=>\^~\|`]+", _GPT2, r"[0-9][0-9][0-9]")

_FAMILIES: Final[tuple[tuple[str, CutRule], ...]] = (
    ("default", CutRule(_DEFAULT)),
    ("gpt-2 phi-2 gigachat a.x-4.0 mellum exaone4 mpt olmo jais trillion granite-docling", CutRule((_GPT2,))),
    (
        "smollm starcoder refact command-r codeshell exaone minerva-7b mellum2",
        CutRule((r"\p{N}", _GPT2)),
    ),
    (
        "llama-bpe llama3 llama-v3 falcon3 falcon-h1 pixtral midm-2.0 lfm2",
        CutRule((_LLAMA3,), ignore_merges=True, adds_bos=True),
    ),
    ("dbrx smaug-bpe chatglm-bpe", CutRule((_LLAMA3,))),
    ("glm4 glm5", CutRule((_LLAMA3,), ignore_merges=True)),
    ("qwen2 deepseek-r1-qwen kormo f2llmv2 megrez stablelm2 hunyuan solar-open grok-2", CutRule((_QWEN2,))),
    ("qwen35", CutRule((_QWEN35,))),
    ("tekken", CutRule((_TEKKEN,), ignore_merges=True, adds_bos=True)),
    ("gpt-4o llama4 kanana2 talkie minimax-m2", CutRule((_GPT4O,))),
    ("deepseek-llm", CutRule(_DEEPSEEK_LLM)),
    ("deepseek-coder", CutRule(_DEEPSEEK_CODER)),
    ("deepseek-v3 hunyuan-dense joyai-llm", CutRule(_DEEPSEEK_V3)),
    ("falcon", CutRule(_FALCON)),
    ("bailingmoe bailingmoe2 llada-moe", CutRule((_BAILING,))),
    ("seed-coder", CutRule((_SEED,))),
)


def known_names() -> list[str]:
    """Every `tokenizer.ggml.pre` that is understood, sorted."""
    return sorted(name for names, _ in _FAMILIES for name in names.split())


def cut_rule(name: str) -> CutRule:
    """The rule that `tokenizer.ggml.pre` names. `ModelFormatError` with the known names for any other."""
    for names, rule in _FAMILIES:
        if name in names.split():
            return rule
    raise ModelFormatError(f"tokenizer.ggml.pre: unknown {name!r:.60}; known are {', '.join(known_names())}")
