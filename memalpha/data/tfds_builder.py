"""The sources as TensorFlow Datasets: `memalpha/<source>`, in array_record files.

No TensorFlow is needed, neither to build nor to read:

    builder = Memalpha(config="squad", data_dir=OUT)
    prepare(builder, raw_dir=DIR)
    instances = [to_instance(row) for row in builder.as_data_source(split="train")]

What nests deeper than one list is stored as JSON text: array_record features without TensorFlow
hold no list of lists.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import tensorflow_datasets as tfds

from memalpha.data import SOURCES, built_sets, make_instances, text
from memalpha.data.instance import Instance, stamp
from memalpha.data.sizes import Sizes, default_sizes
from memalpha.paths import user_path

TEST_ONLY = ("longmemeval_s", "infbench_sum", "infbench_qa", "ruler_qa1", "ruler_qa2")
SPLITS = {source: ("test",) for source in TEST_ONLY} | {
    "perltqa": ("train", "validation"),
    "lme_train": ("train",),
}  # the others: all three


@dataclass
class SourceConfig(tfds.core.BuilderConfig):
    """A source, by default that of the config's name, in the sizes of the paper.

    For others name a config of your own: SourceConfig(name="squad_small", source="squad",
    sizes={"train": Sizes(...)}); the splits are then those of `sizes`.
    """

    source: str = ""
    sizes: Mapping[str, Sizes] = field(default_factory=dict)
    seed: int = 0


class Memalpha(tfds.core.GeneratorBasedBuilder):
    """Instances of the size of the paper; the originals are read from `manual_dir`."""

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES = {"1.0.0": "First release."}
    BUILDER_CONFIGS = [
        SourceConfig(name=source, description=f"Instances of {source}.") for source in SOURCES
    ]
    MANUAL_DOWNLOAD_INSTRUCTIONS = (
        "Put the published files into a folder a source, as `memalpha.data.load_source` says."
    )

    def _info(self) -> tfds.core.DatasetInfo:
        features = tfds.features.FeaturesDict(
            {
                "source": tfds.features.Text(),
                "instance_id": tfds.features.Text(),
                "chunks": tfds.features.Sequence(tfds.features.Text()),
                "questions": tfds.features.Sequence(tfds.features.Text()),  # JSON, one each
                "metadata": tfds.features.Text(),  # JSON
            }
        )
        # Instances stay in the order they are built in.
        return self.dataset_info_from_configs(features=features, disable_shuffling=True)

    def _split_generators(self, dl_manager: Any) -> dict[str, Iterator]:
        source = self.builder_config.source or self.builder_config.name
        load, _ = SOURCES[source]
        records = load(dl_manager.manual_dir)
        splits = self.builder_config.sizes or SPLITS.get(source, text.SPLITS)
        return {split: self._generate_examples(records, split) for split in splits}

    def _generate_examples(self, records: Any, split: str) -> Iterator[tuple[int, dict]]:
        config = self.builder_config
        source = config.source or config.name
        sizes = config.sizes.get(split) or default_sizes(source, split)
        instances = make_instances(
            source, records, split, sizes, config.seed, text.approximate_tokens
        )
        for index, instance in enumerate(instances):
            yield index, to_row(instance)


def prepare(builder: Memalpha, raw_dir: str | Path) -> None:
    """Build all splits from the files below `raw_dir`; nothing is downloaded."""
    config = tfds.download.DownloadConfig(manual_dir=str(user_path(raw_dir)))
    builder.download_and_prepare(file_format="array_record", download_config=config)


def to_row(instance: Instance) -> dict[str, Any]:
    """An instance as the features hold it."""
    row = built_sets.to_json(stamp(instance))
    return {
        "source": row["source"],
        "instance_id": row["instance_id"],
        "chunks": list(row["chunks"]),
        "questions": [json.dumps(q, ensure_ascii=False, sort_keys=True) for q in row["questions"]],
        "metadata": json.dumps(row["metadata"], ensure_ascii=False, sort_keys=True),
    }


def to_instance(row: Mapping[str, Any]) -> Instance:
    """The instance of a row that was read: texts come as bytes."""
    return built_sets.from_json(
        {
            "source": row["source"].decode(),
            "instance_id": row["instance_id"].decode(),
            "chunks": [chunk.decode() for chunk in row["chunks"]],
            "questions": [json.loads(question) for question in row["questions"]],
            "metadata": json.loads(row["metadata"]),
        }
    )
