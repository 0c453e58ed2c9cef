"""The server: OpenAI's API over HTTP. Knows the engine and its thread; knows nothing of steps and blocks."""
