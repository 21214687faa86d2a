"""What simple memories score on built data sets, with the offline reader.

    python -m memalpha.data build --source=all --raw_dir=DIR --out=OUT --shrink
    python -m benchmarks.data_baselines OUT [--instances=2] [--questions=20] [--tokenizer=PATH]

Prints one line per folder of OUT: the scores of no memory, of storing every line and of RAG-Top2,
and the memory tokens of the last two. Sources that need a judge are scored by the rules of
`scoring.recall_judge`. Not comparable with the paper's tables, whose reader is a language model.
"""

import argparse
from dataclasses import replace
from pathlib import Path

import numpy as np

from experiments.main_job import SIMPLE_MEMORIES
from memalpha import scoring
from memalpha.data import built_sets
from memalpha.data.instance import Instance
from memalpha.episode import Environment, ReadingSpec
from memalpha.prompts import PromptSpec, load_template
from memalpha.reading import run_baseline
from memalpha.tokenizer import load_tokenizer, train_tokenizer

SYSTEMS = {name: SIMPLE_MEMORIES[name] for name in ("no memory", "store everything", "RAG-Top2")}


def sample(folder: Path, instances: int, questions: int) -> list[Instance]:
    """The first instances of a built set, each with its first questions."""
    built = built_sets.Built(folder)
    selected = [built[index] for index in range(min(instances, len(built)))]
    return [replace(instance, questions=instance.questions[:questions]) for instance in selected]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--instances", type=int, default=2)
    parser.add_argument("--questions", type=int, default=20)
    parser.add_argument("--tokenizer", default="", help="default: one trained on the instances")
    args = parser.parse_args()
    folders = sorted(path.parent for path in args.out.glob("*/*/manifest.json"))
    samples = {folder: sample(folder, args.instances, args.questions) for folder in folders}
    texts = [chunk for selected in samples.values() for i in selected for chunk in i.chunks]
    tokenizer = load_tokenizer(args.tokenizer) if args.tokenizer else train_tokenizer(texts, 8192)
    env = Environment(
        PromptSpec(tokenizer, load_template("full")),
        reading=ReadingSpec(answer_judge=scoring.recall_judge),
    )
    print(f"| source | split | instances | questions | {' | '.join(SYSTEMS)} | tokens held |")
    print("|" + "---|" * (len(SYSTEMS) + 5))
    for folder, selected in samples.items():
        episodes = {name: run_baseline(env, selected, recall) for name, recall in SYSTEMS.items()}
        scores = [
            f"{np.mean([e.r1 for e in system_episodes]):.3f}"
            for system_episodes in episodes.values()
        ]
        memory_tokens = np.mean([episode.memory_tokens for episode in episodes["RAG-Top2"]])
        asked = sum(len(instance.questions) for instance in selected)
        cells = [folder.parent.name, folder.name, str(len(selected)), str(asked), *scores]
        print(f"| {' | '.join(cells)} | {memory_tokens:,.0f} |", flush=True)


if __name__ == "__main__":
    main()
