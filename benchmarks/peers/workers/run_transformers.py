"""transformers.generate with sdpa, its default. Settings: {"model": directory, "threads", "dtype"}; prompts are
computed whole.

Requests of like output length share a batch, padded on the left, so that little is computed in vain; each keeps its
own number of tokens of the batch's.
"""

import torch
from protocol import Engine, serve
from transformers import AutoModelForCausalLM

BATCH = 32  # rows


class Transformers(Engine):
    def __init__(self, settings):
        torch.set_num_threads(settings["threads"])
        dtype = {"bfloat16": torch.bfloat16, "float32": torch.float32}[settings["dtype"]]
        model = AutoModelForCausalLM.from_pretrained(settings["model"], dtype=dtype, attn_implementation="sdpa")
        model.generation_config.eos_token_id = None  # nothing ends early, and nothing has to look
        self.model = model.eval()

    def run(self, jobs):
        tokens = [None] * len(jobs)
        order = sorted(range(len(jobs)), key=lambda index: jobs[index][1])
        for first in range(0, len(order), BATCH):
            batch = order[first : first + BATCH]
            for index, row in zip(batch, self.generate([jobs[index] for index in batch]), strict=True):
                tokens[index] = row[: jobs[index][1]]
        return tokens

    def generate(self, batch):
        longest = max(len(ids) for ids, _ in batch)
        ids = torch.tensor([[0] * (longest - len(ids)) + ids for ids, _ in batch])
        mask = torch.tensor([[0] * (longest - len(ids)) + [1] * len(ids) for ids, _ in batch])
        length = max(length for _, length in batch)
        with torch.inference_mode():
            out = self.model.generate(ids, attention_mask=mask, max_new_tokens=length, do_sample=False, pad_token_id=0)
        return out[:, longest:].tolist()


serve(Transformers, "transformers", "torch")
