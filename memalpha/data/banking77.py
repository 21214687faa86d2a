"""Banking77: customer questions to a bank, in 77 classes."""

from pathlib import Path

from memalpha.data import files, text
from memalpha.data.labelled import Labelled, Sentence, build, collect
from memalpha.paths import user_path

__all__ = ["build", "load_folder"]

SOURCE = "banking77"
VALIDATION_SHARE = 0.1  # of the training rows, by the hash of the sentence


def load_folder(data_dir: str | Path) -> Labelled:
    """Read banking77/train*.csv and, where it is, banking77/test*.csv (columns text, category).

    Errors: ValueError naming file, record and column.
    """
    folder = user_path(data_dir) / SOURCE
    train = files.find(folder, ["train*.csv"], "put the published train.csv and test.csv there")
    digests, sentences = {}, []
    for path, split in [(p, "test") for p in sorted(folder.glob("test*.csv"))] + [
        (p, "") for p in train
    ]:
        digests[path.name] = files.digest(path)
        for number, (_, row) in enumerate(files.csv_records(path, ("text", "category")), start=1):
            sentence = " ".join(row["text"].split())  # some texts go over lines
            sentences.append(Sentence(f"{path.name}:{number}", sentence, row["category"], split))
    return collect(SOURCE, sentences, digests, _split_of, classes=77)


def _split_of(key: str) -> str:
    return "validation" if text.share("banking77 sentence", key) < VALIDATION_SHARE else "train"
