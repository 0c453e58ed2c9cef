"""The server: OpenAI's wire over HTTP. Knows the runtime and the engine's thread; knows nothing of steps and blocks."""
