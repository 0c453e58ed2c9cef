"""The dozen operations that a decoder is made of, over opaque tensors.

`interface` says what they are, `reference` what they mean (plain PyTorch). Knows no model, no batch and no sequence.
Importing this package imports no backend.
"""
