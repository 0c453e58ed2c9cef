"""Decoders from a path, as an engine makes them."""

from pathlib import Path

from octavo.models.decoder import Decoder
from octavo.models.load import LoadOptions, load_decoder, read_model
from octavo.ops.interface import Device, Ops


def decoder_at(path: Path, options: LoadOptions, ops: Ops, device: Device) -> Decoder:
    """The model at `path`, packed on `device`; its files are closed."""
    with read_model(path, weights=options.load_format != "dummy") as model:
        return load_decoder(model, options, ops, device)
