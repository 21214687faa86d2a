"""CLINC150 (named clinic150 in the tables): requests to an assistant, in 150 classes.

The out-of-scope sentences of the published file belong to no class and are not used.
"""

from pathlib import Path

from memalpha.data import files, text
from memalpha.data.labelled import Labelled, Sentence, build, collect

__all__ = ["build", "load_folder"]

SOURCE = "clinic150"
PARTS = {"test": "test", "val": "validation", "train": "train"}


def load_folder(data_dir: str | Path) -> Labelled:
    """Read clinc150/*.json below `data_dir`: {train | val | test: [[text, intent], ...]}.

    Errors: ValueError naming file, field and record.
    """
    folder = Path(data_dir) / "clinc150"
    paths = files.find(folder, ["*.json"], "put the published data_full.json there")
    if len(paths) > 1:
        names = ", ".join(path.name for path in paths)
        raise ValueError(f"{folder}: {names}; keep one (they hold the same sentences)")
    data, digest = text.read_json(paths[0])
    sentences: list[Sentence] = []
    for part, split in PARTS.items():
        for number, pair in enumerate(text.require(data, part, list, str(paths[0]))):
            where = f"{paths[0]}: {part}[{number}]"
            if not isinstance(pair, list) or len(pair) != 2:
                raise ValueError(f"{where}: must be [text, intent], not {str(pair)[:80]}")
            if not all(isinstance(item, str) and item.strip() for item in pair):
                raise ValueError(f"{where}: text and intent must be strings that are not blank")
            name = f"{paths[0].name}:{part}:{number}"
            sentences.append(Sentence(name, pair[0].strip(), pair[1].strip(), split))
    # The published parts stand; of sentences that read alike, the one that is asked last decides.
    return collect(SOURCE, sentences, {paths[0].name: digest}, lambda key: "train", classes=150)
