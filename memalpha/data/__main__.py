"""Build, look at and fetch the data sets.

python -m memalpha.data build --source=squad,nlu --raw_dir=DIR --out=OUT
python -m memalpha.data build --source=all --raw_dir=DIR --out=OUT --split=train --shrink
python -m memalpha.data build --parquet=train.parquet --split=train --out=OUT
python -m memalpha.data inspect OUT/squad/train
python -m memalpha.data stratify --built=OUT --out=OUT/stratified
python -m memalpha.data leakage OUT/squad/train OUT/squad/test
python -m memalpha.data download --source=squad --out=DIR
"""

import argparse
import os
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

from memalpha.data import (
    SOURCES,
    build,
    built_sets,
    checks,
    published,
    stratified,
    text,
    unread_files,
)
from memalpha.data.keywords import lm_keywords
from memalpha.data.names import family
from memalpha.data.sizes import FULL_TRAINING, PUBLISHED, Sizes, default_sizes
from memalpha.paths import user_path

FILES = 10  # source files that `inspect` names
COLUMNS = ("instances", "chunks_per_instance", "tokens_per_chunk", "questions_per_instance")


def main(arguments: list[str] | None = None) -> int:
    """Run a command; returns the exit status. What is wrong with the data goes to stderr."""
    args = _parser().parse_args(arguments)
    try:
        status = args.run(args) or 0
        sys.stdout.flush()
        return status
    except BrokenPipeError:  # the reader of the output has seen enough: `inspect ... | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (ValueError, ConnectionError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m memalpha.data",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(required=True)
    _add_build(commands)
    add = commands.add_parser("inspect", help="print statistics and an instance")
    add.set_defaults(run=_inspect)
    add.add_argument("folder", type=user_path)
    add.add_argument("--instance", type=int, default=0)
    add.add_argument("--letters", type=int, default=600, help="of each text shown")

    add = commands.add_parser("stratify", help="draw the training subset of table 7")
    add.set_defaults(run=_stratify)
    add.add_argument("--built", type=user_path, required=True)
    add.add_argument("--out", type=user_path, required=True)
    add.add_argument("--seed", type=int, default=0)
    add.add_argument("--subset", default="", help="source=count,... instead of table 7")
    add.add_argument("--overwrite", action="store_true")
    _tokenizer_flag(add)

    add = commands.add_parser("leakage", help="questions and paragraphs in both of two sets")
    add.set_defaults(run=_leakage)
    add.add_argument("training", type=user_path)
    add.add_argument("evaluated", type=user_path)

    add = commands.add_parser("download", help="fetch published files")
    add.set_defaults(run=_download)
    add.add_argument("--source", default="all")
    add.add_argument(
        "--out", type=user_path, required=True, help="the data folder: --raw_dir of build"
    )
    return parser


def _add_build(commands: Any) -> None:
    add = commands.add_parser("build", help="from originals or a published parquet")
    add.set_defaults(run=_build)
    add.add_argument("--source", default="", help=f"comma-separated, or all: {', '.join(SOURCES)}")
    add.add_argument(
        "--raw_dir", type=user_path, help="holds the published files, a folder a source"
    )
    add.add_argument("--parquet", type=user_path, help="a published parquet, in place of --raw_dir")
    add.add_argument(
        "--entities", type=user_path, help="entity2id.json, for recsys rows of a parquet"
    )
    add.add_argument("--out", type=user_path, required=True)
    add.add_argument("--split", default="", help="default: every split that the files hold")
    add.add_argument("--seed", type=int, default=0)
    for name in ("count", "chunks", "chunk_tokens", "questions"):
        add.add_argument(f"--{name}", type=int, help="default: as in the paper")
    add.add_argument("--full", action="store_true", help="as many training instances as table 6")
    add.add_argument("--shrink", action="store_true", help="fewer chunks if the files fill no more")
    add.add_argument(
        "--target_tokens",
        type=int,
        help="ruler sources and longmemeval_s: the length of an instance",
    )
    add.add_argument(
        "--repeat", action="store_true", help="ruler sources: documents may come again"
    )
    add.add_argument(
        "--keywords", type=user_path, help="cache file of keywords, for summary sources"
    )
    add.add_argument("--drop_unanswerable", action="store_true")
    add.add_argument("--overwrite", action="store_true")
    _tokenizer_flag(add)


def _tokenizer_flag(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--tokenizer", default="", help="path or hub id; default: an approximation")


def _counter(name: str) -> tuple[Callable[[str], int], str]:
    if not name:
        return text.approximate_tokens, "approximate"
    from memalpha.tokenizer import encode, load_tokenizer  # slow to import

    tokenizer = load_tokenizer(name)
    # The last part of a path: a build does not depend on where its tokenizer lies.
    return lambda words: len(encode(tokenizer, words)), Path(name).name


def _build(args: argparse.Namespace) -> int:
    count_tokens, tokens = _counter(args.tokenizer)
    options = build.Options(
        count_tokens, tokens, args.shrink, args.drop_unanswerable, args.overwrite
    )
    if (args.parquet is None) == (args.raw_dir is None):
        raise ValueError("give either --raw_dir or --parquet")
    if args.parquet is None and not args.source:
        raise ValueError(f"--source: name one of {', '.join(SOURCES)}, or all")
    print(_header())
    return (_build_originals if args.parquet is None else _build_parquet)(args, options)


def _build_parquet(args: argparse.Namespace, options: build.Options) -> int:
    split = args.split or ("test" if "test" in args.parquet.name else "train")
    names = published.read_entity_names(args.entities) if args.entities else None
    manifests = build.from_parquet(
        args.parquet,
        split,
        args.out,
        "" if args.source == "all" else args.source,
        args.count,
        published.Contexts(args.chunk_tokens or published.Contexts.chunk_tokens, names),
        options,
    )
    for name, manifest in manifests.items():
        print(_row(name, split, manifest["statistics"]))
    return 0


def _build_originals(args: argparse.Namespace, options: build.Options) -> int:
    """What is wrong stops a build of one source and split; of several, the others go on."""
    every = args.source == "all"
    splits = [args.split] if args.split else text.SPLITS
    built = 0
    for source in SOURCES if every else args.source.split(","):
        sizes = {split: _sizes(args, source, split) for split in splits}
        try:
            records = SOURCES[source][0](args.raw_dir)
        except ValueError as error:
            if not every:
                raise
            print(f"{source:<25}not built: {error}")
            continue
        _print_losses(source, getattr(records, "left_out", {}))
        if names := unread_files(source, args.raw_dir, records):
            print(f"{source:<25}files not read: {', '.join(names)}")
        for split in splits:
            begun = time.monotonic()
            try:
                manifest = build.from_originals(
                    source, split, records, args.out, sizes[split], args.seed, options
                )
            except ValueError as error:
                if args.split and not every:
                    raise
                print(f"{source:<14}{split:<11}not built: {error}")
                continue
            built += 1
            seconds = f"{time.monotonic() - begun:8.1f} s"
            print(_row(source, split, manifest["statistics"]) + seconds, flush=True)
    return 0 if built else 1


def _print_losses(source: str, left_out: dict[str, int]) -> None:
    if left_out:
        losses = ", ".join(f"{count:,} {reason}" for reason, count in sorted(left_out.items()))
        print(f"{source:<25}left out: {losses}")


def _sizes(args: argparse.Namespace, source: str, split: str) -> Sizes:
    if source not in SOURCES:
        raise ValueError(f"unknown data source {source!r}; known: {', '.join(SOURCES)}")
    if split not in text.SPLITS:
        raise ValueError(f"unknown split {split!r}; known: {', '.join(text.SPLITS)}")
    sizes = default_sizes(source, split)
    given = {
        name: getattr(args, name)
        for name in ("count", "chunks", "chunk_tokens", "questions")
        if getattr(args, name) is not None
    }
    if args.full and split == "train" and source in FULL_TRAINING:
        given.setdefault("count", FULL_TRAINING[source])
    options = dict(sizes.options)
    if "target_tokens" in options or source in ("ruler_qa1", "ruler_qa2"):
        if args.target_tokens:
            options["target_tokens"] = args.target_tokens
        elif given.keys() & {"chunks", "chunk_tokens"}:
            options["target_tokens"] = 0  # the chunks asked for, full
    if source in ("ruler_qa1", "ruler_qa2"):
        options["repeat"] = args.repeat
    if args.keywords is not None and source in ("booksum", "infbench_sum"):
        options["keywords"] = partial(lm_keywords, generate=_no_model, cache=args.keywords)
    return replace(sizes, **given, options=options)


def _no_model(prompts: list[str]) -> list[str | None]:
    raise ValueError(
        f"{len(prompts)} summaries are not in the keyword file; fill it with"
        " memalpha.data.keywords.lm_keywords and a model, or leave --keywords out"
    )


def _header() -> str:
    names = ("instances", "chunks", "tokens/chunk", "questions", "answerable")
    return f"{'source':<14}{'split':<11}" + "".join(f"{name:>17}" for name in names)


def _row(source: str, split: str, statistics: dict) -> str:
    """A line of the table; the figure of the paper in brackets, where it has one."""
    name = family(source)
    name = "longmemeval_s" if name == "longmemeval" else name
    figures = PUBLISHED.get(split, {}).get(name)
    line = f"{source:<14}{split:<11}"
    for index, name in enumerate(COLUMNS):
        beside = f" ({figures[index]:g})" if figures else ""
        line += f"{statistics[name]:>{17 - len(beside)}.{0 if not index else 1}f}{beside}"
    share = statistics["answerable_share"]
    return line + ("judged" if share is None else f"{share:.3f}").rjust(17)


def _inspect(args: argparse.Namespace) -> None:
    built = built_sets.Built(args.folder)
    built.check()
    description = built.manifest["description"]
    print(_header())
    print(_row(description["source"], description["split"], built.manifest["statistics"]))
    counter = description.get("tokens", "a counter that the build does not name")
    print("in brackets: the paper's tables 7 and 8; tokens counted by", counter)
    _print_losses(description["source"], description.get("left_out", {}))
    print("built by", built.manifest["builder"], "from")
    sources = built.manifest["files"]
    for name, digest in islice(sources.items(), FILES):
        print(f"  {name}  sha256 {digest}")
    if len(sources) > FILES:
        print(f"  and {len(sources) - FILES:,} more, in {built_sets.MANIFEST}")
    instance = built[args.instance]
    print(f"\ninstance {args.instance}: {instance.source}/{instance.instance_id}")
    places = sorted({0, len(instance.chunks) // 2, len(instance.chunks) - 1})
    for place in places:
        print(f"\n--- chunk {place + 1} of {len(instance.chunks)}")
        print(_short(instance.chunks[place], args.letters))
    print(f"\n--- {len(instance.questions)} questions")
    verdicts = checks.answerable(instance)
    for question, verdict in list(zip(instance.questions, verdicts, strict=True))[:5]:
        place = {None: "", True: "  [in the text]", False: "  [not in the text]"}[verdict]
        date = f"[asked at {question.asked_at}] " if question.asked_at else ""
        print("Q:", date + _short(question.question, args.letters))
        print("A:", _short(" | ".join(question.answers), args.letters) + place)


def _short(words: str, letters: int) -> str:
    return words if len(words) <= letters else f"{words[:letters]} ... ({len(words):,} letters)"


def _stratify(args: argparse.Namespace) -> None:
    count_tokens, tokens = _counter(args.tokenizer)
    subset = stratified.SUBSET
    if args.subset:
        try:
            pairs = (pair.split("=") for pair in args.subset.split(","))
            subset = {source: int(number) for source, number in pairs}
        except ValueError as error:
            raise ValueError(f"--subset={args.subset}: give source=count,...") from error
    manifest = stratified.write(
        args.built, args.out, args.seed, count_tokens, subset, args.overwrite, tokens
    )
    print(f"{manifest['statistics']['instances']} instances at {args.out}")


def _leakage(args: argparse.Namespace) -> int:
    result = checks.leakage(built_sets.Built(args.training), built_sets.Built(args.evaluated))
    print(result)
    for name, shared in (("Q", result.shared_questions), ("P", result.shared_paragraphs)):
        for line in shared[:5]:
            print(f"  {name}: {_short(line, 160)}")
    return 0


def _download(args: argparse.Namespace) -> None:
    from memalpha.data.download import REMOTES, fetch  # needs no network until it is called

    wanted = REMOTES if args.source == "all" else args.source.split(",")
    for source in wanted:
        if source not in REMOTES:
            raise ValueError(f"nothing to fetch for {source!r}; known: {', '.join(REMOTES)}")
        for remote in REMOTES[source]:
            print(fetch(remote, args.out))


if __name__ == "__main__":
    sys.exit(main())
