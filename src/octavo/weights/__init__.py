"""Model files on disk to arrays in memory: GGUF and safetensors, read as hostile input.

Knows the two file formats and what their bytes mean as numbers. Does not know architectures: which tensors a model
needs, and of what shape, is for `models`.
"""
