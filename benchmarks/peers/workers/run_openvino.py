"""OpenVINO GenAI. Settings: {"model": directory of the exported model, "threads", "step_tokens": it may be missing}.

The pipeline of continuous batching, with prefix caching. Tried for each workload: the hint for latency or for
throughput, and the number of tokens in a step that was asked for, or else the default and as many as llama.cpp gets;
for a single request also the pipeline without paged attention, which has no steps. Another choice is another pipeline:
it is loaded again, untimed.
"""

import numpy as np
import openvino
import openvino_genai
from protocol import Engine, serve

CACHE = 2  # GB
BATCH = 2048  # tokens of a step, where many are wanted
HINTS = ("LATENCY", "THROUGHPUT")
STATEFUL = "LATENCY, not paged"


class OpenVino(Engine):
    def __init__(self, settings):
        self.model = settings["model"]
        self.threads = settings["threads"]
        self.step_tokens = settings.get("step_tokens")
        self.made_for = self.pipeline = None

    def choices(self, workload):
        stepped = tuple(f"{hint}, steps of {self.step_tokens or BATCH}" for hint in HINTS)
        paged = stepped if self.step_tokens else (*HINTS, *stepped)
        return (*paged, STATEFUL) if workload in ("W1", "W2") else paged

    def prepare(self, choice, _jobs):
        if self.made_for == choice:
            return
        self.pipeline = None  # first give the memory back
        hint = choice.partition(",")[0]
        properties = {"PERFORMANCE_HINT": hint, "INFERENCE_NUM_THREADS": self.threads}
        if choice == STATEFUL:
            self.pipeline = openvino_genai.LLMPipeline(self.model, "CPU", ATTENTION_BACKEND="SDPA", **properties)
        else:
            scheduling = openvino_genai.SchedulerConfig()
            scheduling.enable_prefix_caching = True
            scheduling.cache_size = CACHE
            if "steps" in choice:
                scheduling.max_num_batched_tokens = self.step_tokens or BATCH
            self.pipeline = openvino_genai.ContinuousBatchingPipeline(self.model, scheduling, "CPU", properties)
        self.made_for = choice

    def run(self, jobs):
        prompts = [openvino.Tensor(np.array([ids], np.int64)) for ids, _ in jobs]
        configs = [self.greedy(length) for _, length in jobs]
        if self.made_for == STATEFUL:
            return [list(self.pipeline.generate(p, c).tokens[0]) for p, c in zip(prompts, configs, strict=True)]
        return [list(result.m_generation_ids[0]) for result in self.pipeline.generate(prompts, configs)]

    def greedy(self, length):
        config = openvino_genai.GenerationConfig()
        config.max_new_tokens = length
        config.ignore_eos = True
        config.do_sample = False
        return config


serve(OpenVino, "openvino", "openvino-genai")
