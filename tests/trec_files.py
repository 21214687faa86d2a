"""Files in the published form of TREC."""

from pathlib import Path

WORDS = {"HUM:ind": "Who", "LOC:city": "Where", "NUM:date": "When"}


def write_trec(raw: Path, train: int, test: int) -> None:
    """Writes trec/ below a folder: so many sentences of each of three classes to train and test."""
    folder = raw / "trec"
    folder.mkdir(parents=True)
    for name, count in (("train_5500.label", train), ("TREC_10.label", test)):
        lines = [
            f"{label} {word} in {name[:5]} question {i} ?"
            for i in range(count)
            for label, word in WORDS.items()
        ]
        (folder / name).write_text("\n".join(lines) + "\n")
