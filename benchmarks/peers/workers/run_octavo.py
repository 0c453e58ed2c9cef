"""Octavo, in the environment of the one who asks. Settings: {"model", "threads", and any other field of LLM}."""

from protocol import Engine, serve

from octavo import LLM, SamplingParams


class Octavo(Engine):
    def __init__(self, settings):
        self.llm = LLM(**settings)

    def run(self, jobs):
        self.llm.reset_prefix_cache()
        params = [SamplingParams(max_tokens=length, temperature=0.0, ignore_eos=True) for _, length in jobs]
        outputs = self.llm.generate([ids for ids, _ in jobs], params, progress=False)
        return [list(output.outputs[0].token_ids) for output in outputs]


serve(Octavo, "octavo", "numpy")
