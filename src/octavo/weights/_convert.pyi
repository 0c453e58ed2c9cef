import numpy as np
import numpy.typing as npt

SUPER_BLOCK_LEN: int

def block_sizes() -> dict[str, tuple[int, int]]: ...
def convert(data: npt.NDArray[np.uint8], stored: str, words: npt.NDArray[np.uint8], dtype: str) -> bool: ...
def all_finite(words: npt.NDArray[np.uint8], dtype: str) -> bool: ...
def split_strings(window: bytes, start: int, count: int, max_bytes: int) -> tuple[list[str], int]: ...
def stored_layouts() -> dict[str, tuple[int, int, bool, bool]]: ...
def own_layouts() -> dict[str, tuple[int, int, bool, bool]]: ...
def split(
    data: npt.NDArray[np.uint8],
    stored: str,
    codes: npt.NDArray[np.int8],
    scales: npt.NDArray[np.uint16],
    mins: npt.NDArray[np.uint16] | None,
    sub_scales: npt.NDArray[np.int8] | None,
    sub_mins: npt.NDArray[np.int8] | None,
) -> bool: ...
def quantize(
    values: npt.NDArray[np.float32],
    own: str,
    codes: npt.NDArray[np.int8],
    scales: npt.NDArray[np.uint16],
    mins: npt.NDArray[np.uint16] | None,
) -> bool: ...
