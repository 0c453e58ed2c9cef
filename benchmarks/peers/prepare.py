"""Writes the files that the peers read: one model as a Hugging Face directory in bfloat16, and as GGUF files.

SmolLM2 comes from the built-in file, dequantized; its Q4_1 file is the built-in file itself. Qwen2-0.5B has its real
sizes and random weights. Needs the `test` extra; knows no peer. What OpenVINO reads is made from the directory in
OpenVINO's own environment (README.md).
"""

import argparse
import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import gguf
import numpy as np
import torch

from benchmarks.machine import say
from octavo import hub
from tests.support.tiny_models import transformers_model_from_gguf

TYPES = ("BF16", "F16", "Q8_0", "Q4_1", "Q4_0")
QWEN2 = Path(__file__).parents[1] / "qwen2-0.5b" / "config.json"
COPIED_BY_THE_WRITER = ("general.architecture", "general.file_type")
NORMAL, CONTROL, UNUSED = 1, 3, 5  # token types of GGUF


@dataclass(frozen=True)
class Vocabulary:
    """A byte-level BPE, as GGUF holds it."""

    tokens: list[str]
    types: list[int]
    merges: list[str]

    def padded(self, size: int) -> "Vocabulary":
        extra = range(len(self.tokens), size)
        return Vocabulary(
            [*self.tokens, *(f"<extra_{i}>" for i in extra)], [*self.types, *(UNUSED for _ in extra)], self.merges
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", type=Path, required=True, metavar="DIR", help="where to write")
    parser.add_argument("--only", default="smollm2-135m,qwen2-0.5b")
    args = parser.parse_args()
    builtin = hub.resolve("smollm2-135m")
    reader = gguf.GGUFReader(builtin)
    for name in args.only.split(","):
        {"smollm2-135m": prepare_smollm2, "qwen2-0.5b": prepare_qwen2}[name](args.models / name, builtin, reader)


def prepare_smollm2(folder: Path, builtin: Path, reader: gguf.GGUFReader) -> None:
    model = transformers_model_from_gguf(builtin).to(torch.bfloat16)
    write_directory(folder / "hf", model, vocabulary_of(reader))
    tensors = {t.name: gguf.dequantize(t.data, t.tensor_type) for t in reader.tensors}

    def describe(writer: gguf.GGUFWriter) -> None:
        for field in reader.fields.values():
            if not field.name.startswith("GGUF.") and field.name not in COPIED_BY_THE_WRITER:
                is_list = field.types[0] == gguf.GGUFValueType.ARRAY
                item = field.types[-1] if is_list else None
                writer.add_key_value(field.name, field.contents(), field.types[0], sub_type=item)

    for type in TYPES:
        if type != "Q4_1":
            write_gguf(folder / "gguf" / f"{type}.gguf", "llama", describe, tensors)
    shutil.copy(builtin, folder / "gguf" / "Q4_1.gguf")


def prepare_qwen2(folder: Path, _: Path, reader: gguf.GGUFReader) -> None:
    from transformers import Qwen2Config, Qwen2ForCausalLM

    config = Qwen2Config(**json.loads(QWEN2.read_text()))
    vocabulary = vocabulary_of(reader).padded(config.vocab_size)
    torch.manual_seed(0)
    model = Qwen2ForCausalLM(config).to(torch.bfloat16)
    write_directory(folder / "hf", model, vocabulary)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.QWEN2, config.num_hidden_layers)
    tensors = {}
    for name, values in model.state_dict().items():
        if name != "lm_head.weight":  # tied to the embedding
            tensors[names.get_name(name, (".weight", ".bias"))] = values.float().numpy()

    def describe(writer: gguf.GGUFWriter) -> None:
        writer.add_context_length(config.max_position_embeddings)
        writer.add_embedding_length(config.hidden_size)
        writer.add_block_count(config.num_hidden_layers)
        writer.add_feed_forward_length(config.intermediate_size)
        writer.add_head_count(config.num_attention_heads)
        writer.add_head_count_kv(config.num_key_value_heads)
        writer.add_rope_freq_base(1e6)
        writer.add_layer_norm_rms_eps(config.rms_norm_eps)
        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre("smollm")
        writer.add_token_list(vocabulary.tokens)
        writer.add_token_types(vocabulary.types)
        writer.add_token_merges(vocabulary.merges)
        writer.add_bos_token_id(1)
        writer.add_eos_token_id(2)

    for type in TYPES:
        write_gguf(folder / "gguf" / f"{type}.gguf", "qwen2", describe, tensors)


def vocabulary_of(reader: gguf.GGUFReader) -> Vocabulary:
    tokens, types, merges = (
        reader.fields[f"tokenizer.ggml.{name}"].contents() for name in ("tokens", "token_type", "merges")
    )
    return Vocabulary(tokens, types, merges)


def write_directory(folder: Path, model: torch.nn.Module, vocabulary: Vocabulary) -> None:
    """Weights, configuration and tokenizer. Prompts are ids: the tokenizer is there because loaders ask for one."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    say(f"writing {folder}")
    model.save_pretrained(folder)
    ids = {token: index for index, token in enumerate(vocabulary.tokens)}
    tokenizer = Tokenizer(models.BPE(ids, [tuple(pair.split(" ")) for pair in vocabulary.merges]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    controls = [t for t, kind in zip(vocabulary.tokens, vocabulary.types, strict=True) if kind == CONTROL]
    tokenizer.add_special_tokens([AddedToken(token, special=True) for token in controls])
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<|im_start|>", "eos_token": "<|im_end|>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=2))


def write_gguf(
    path: Path, arch: str, describe: Callable[[gguf.GGUFWriter], None], tensors: Mapping[str, np.ndarray]
) -> None:
    """`tensors` in the type that `path` is named after. Vectors stay in float32; the embedding, which is the output
    layer too, has 8 bits in the 4-bit files, as in the built-in one.
    """
    say(f"writing {path}")
    path.parent.mkdir(parents=True, exist_ok=True)
    type = path.stem
    writer = gguf.GGUFWriter(path, arch)
    writer.add_file_type(gguf.LlamaFileType[f"MOSTLY_{type}"])
    describe(writer)
    for name, values in tensors.items():
        held = "Q8_0" if name == "token_embd.weight" and type.startswith("Q4") else type
        kind = gguf.GGMLQuantizationType["F32" if values.ndim == 1 else held]
        writer.add_tensor(name, gguf.quantize(np.ascontiguousarray(values), kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


if __name__ == "__main__":
    main()
