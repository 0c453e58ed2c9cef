"""Whether the same request gives the same bits in every configuration that must not matter."""
