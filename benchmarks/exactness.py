"""How often `memalpha.exactness` objects: to statements of a conversation, and to those of another.

    python -m benchmarks.exactness locomo10.json

The published LoCoMo file has ten long conversations, and for each session statements that a
language model drew from it. They should be exact in their session, and not in one of another
conversation. Prints both shares and the commonest strangers. The file is for measuring only.
"""

import argparse
import json
import random
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from memalpha.exactness import strangers


def sessions(conversation: dict) -> dict[str, str]:
    """Name -> date and turns of every session, as one text."""
    return {
        name: "\n".join(
            [conversation[f"{name}_date_time"]]
            + [f"{t['speaker']}: {t['text']} {t.get('blip_caption', '')}" for t in turns]
        )
        for name, turns in conversation.items()
        if isinstance(turns, list)
    }


def statements(sample: dict) -> Iterator[tuple[str, str]]:
    """(name of the session, statement) of one conversation."""
    for name, of_speaker in sample["observation"].items():
        for found in of_speaker.values():
            yield from ((name.removesuffix("_observation"), statement) for statement, _ in found)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("file", type=Path)
    samples = json.loads(parser.parse_args().file.read_text(encoding="utf-8"))
    texts = [sessions(sample["conversation"]) for sample in samples]
    rng, own, foreign = random.Random(0), [], []
    for number, sample in enumerate(samples):
        others = [text for n, of in enumerate(texts) if n != number for text in of.values()]
        for name, statement in statements(sample):
            own.append(strangers(statement, texts[number][name]))
            foreign.append(strangers(statement, rng.choice(others)))
    for title, found in (("its own session", own), ("another conversation", foreign)):
        share = sum(map(bool, found)) / len(found)
        print(f"{title}: strangers in {share:.3f} of {len(found)} statements")
    print("commonest in its own:", Counter(word for words in own for word in words).most_common(12))


if __name__ == "__main__":
    main()
