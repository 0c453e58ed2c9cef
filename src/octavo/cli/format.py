"""Small texts for people: sizes, and words that come from a stranger's file."""


def size_text(num_bytes: int) -> str:
    """Bytes for people: 98,362,432 -> "93.8 MiB"."""
    if num_bytes < 1024:
        return f"{num_bytes} B"
    size, unit = num_bytes / 1024, "KiB"
    for larger in ("MiB", "GiB", "TiB"):
        if size < 1024:
            break
        size, unit = size / 1024, larger
    return f"{size:.1f} {unit}"


def printable(text: str) -> str:
    """`text` without what a terminal would act on (escape codes in the names of a model's tensors)."""
    return text if text.isprintable() else ascii(text)
