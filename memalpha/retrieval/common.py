"""What both indexes share: checked texts, and a result that search fills in."""

from collections.abc import Sequence

import numpy as np


def check_texts(what: str, texts: Sequence[str]) -> list[str]:
    """The texts as a list; ValueError with the place of one that is no string."""
    if isinstance(texts, str):
        raise ValueError(f"retrieval: {what} is one string; give a list of strings")
    texts = list(texts)
    for position, text in enumerate(texts):
        if not isinstance(text, str):
            raise ValueError(
                f"retrieval: {what}[{position}] is {type(text).__name__}; it must be a string"
            )
    return texts


def empty_result(rows: int, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Ids of -1 [rows, k] int32 and scores of -inf [rows, k] float32; ValueError when k < 1."""
    if k < 1:
        raise ValueError(f"retrieval: k is {k}; it must be at least 1")
    return np.full((rows, k), -1, np.int32), np.full((rows, k), -np.inf, np.float32)
