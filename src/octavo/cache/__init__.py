"""The KV cache: `blocks` counts blocks and knows no bytes, `kv` holds the bytes and knows no sequences."""
