"""The engine: plan, pack, run, commit. It speaks token ids; text is LLMEngine's."""
