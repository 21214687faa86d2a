"""Stops a run whose reader, judge or writer failed too often for its results to be meaningful."""

from collections.abc import Sequence

import numpy as np
from ml_collections import ConfigDict

from memalpha.episode import Episode


class ReaderFailureError(RuntimeError):
    """Too many questions or calls are without a score for rewards or results to be meaningful."""


def check_answers(config: ConfigDict, episodes: Sequence[Episode], where: str) -> None:
    """Raises ReaderFailureError if more than `config.max_failed_share` of the questions have no
    score, or of the steps no verdict of the content judge; quotes the last error message."""
    scores = np.concatenate([episode.scores for episode in episodes])
    content = np.array([step.r4 for episode in episodes for step in episode.steps])
    for failed, what in (
        (np.isnan(scores), "reader, judge or writer left {:.0%} of the questions unanswered"),
        (np.isnan(content), "the judge left {:.0%} of the steps without a verdict"),
    ):
        share = failed.mean() if failed.size else 0.0
        if share > config.max_failed_share:
            messages = [episode.failure for episode in episodes if episode.failure]
            words = f". The last failure: {messages[-1]}" if messages else ""
            raise ReaderFailureError(
                f"{where}: {what.format(share)}, more than max_failed_share="
                f"{config.max_failed_share:.0%}{words}. What is on disk is kept"
            )
