"""Model definitions: one decoder for all dense families, what differs between them, and loading from files.

Knows architectures and the names of their tensors. Does no arithmetic of its own: that is `octavo.ops`.
"""
