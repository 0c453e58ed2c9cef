"""Text: strings to token ids and back, messages to prompts. Knows nothing of engines, tensors or weights."""
