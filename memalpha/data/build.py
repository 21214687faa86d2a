"""From published files to a built folder: what `python -m memalpha.data build` does."""

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

from memalpha.data import SOURCES, built_sets, make_instances, published
from memalpha.data.checks import drop_unanswerable
from memalpha.data.instance import Instance
from memalpha.data.names import family
from memalpha.data.sizes import Sizes, default_sizes


@dataclass(frozen=True)
class Options:
    """How a set is built and written, whatever its source.

    count_tokens: the counter, and `tokens` its name for the manifest. shrink: where the files at
    hand do not fill the chunks asked for, take as many as they do (originals only). drop: leave out
    questions whose answer is nowhere in the chunks. overwrite: replace a folder that is there.
    """

    count_tokens: Callable[[str], int] = lambda text: len(text.split())
    tokens: str = "words"
    shrink: bool = False
    drop: bool = False
    overwrite: bool = False


DEFAULT = Options()
WHOLE = published.Contexts()


def from_originals(
    source: str,
    split: str,
    records: Any,
    out: str | Path,
    sizes: Sizes | None = None,
    seed: int = 0,
    options: Options = DEFAULT,
) -> dict[str, Any]:
    """Build a source into out/<source>/<split> and return the manifest of `built_sets.write`.

    Args:
        records: what the loader of the source (`SOURCES`) gave for a data folder.
        sizes: of the instances; by default those of the paper (`sizes.default_sizes`).
    """
    if source not in SOURCES:
        raise ValueError(f"unknown data source {source!r}; known: {', '.join(SOURCES)}")
    sizes = sizes or default_sizes(source, split)

    def make(tried: Sizes) -> Iterator[Instance]:
        return make_instances(source, records, split, tried, seed, options.count_tokens)

    if options.shrink:
        sizes = _shrink(make, sizes)
    described = asdict(sizes)
    # A function cannot be written down; what it did is in the metadata of every instance.
    described["options"] = {k: v for k, v in sizes.options.items() if not callable(v)}
    description = {"source": source, "split": split, "seed": seed, **described}
    description["left_out"] = getattr(records, "left_out", {})
    return _write(Path(out) / source / split, make(sizes), description, options)


def _write(
    folder: Path, instances: Iterator[Instance], description: dict[str, Any], options: Options
) -> dict[str, Any]:
    """Write a built folder as the options say; returns the manifest."""
    if options.drop:
        answerable = map(drop_unanswerable, instances)
        instances = (instance for instance in answerable if instance is not None)
    description |= {"tokens": options.tokens, "drop_unanswerable": options.drop}
    return built_sets.write(folder, instances, description, options.count_tokens, options.overwrite)


def _shrink(make: Callable[[Sizes], Iterator[Instance]], sizes: Sizes) -> Sizes:
    """The sizes with the most chunks (at most sizes.chunks) that the files fill."""

    def with_chunks(chunks: int) -> Sizes:
        options = dict(sizes.options)
        if options.get("target_tokens"):
            options["target_tokens"] = options["target_tokens"] * chunks // sizes.chunks
        return replace(sizes, chunks=chunks, options=options)

    def works(chunks: int) -> bool:
        try:
            return next(make(with_chunks(chunks)), None) is not None
        except ValueError:
            return False

    if works(sizes.chunks):
        return sizes
    low, high = 0, sizes.chunks  # low works (or nothing does), high does not
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if works(middle) else (low, middle)
    return with_chunks(max(low, 1))  # if nothing works, the build itself says why


def from_parquet(
    path: str | Path,
    split: str,
    out: str | Path,
    source: str = "",
    count: int | None = None,
    contexts: published.Contexts = WHOLE,
    options: Options = DEFAULT,
) -> dict[str, dict[str, Any]]:
    """Bring a published parquet into out/<source>/<split>, one folder a source: {source: manifest}.

    Args:
        source: only rows whose source is this one or a published variant of it.
        count: at most so many instances of a source.
        contexts: how the contexts of MemoryAgentBench's own layout are cut and read.

    The file is read once a source, so that no more than a few rows are in memory.
    """
    names = published.source_names(path)
    wanted = [n for n in names if not source or n == source or family(n) == family(source)]
    if not wanted:
        raise ValueError(f"{path}: no rows of source {source!r}; it holds {', '.join(names)}")
    manifests = {}
    for name in wanted:
        rows = published.read(
            path,
            split,
            lambda other, name=name: other == name,
            contexts.chunk_tokens,
            options.count_tokens,
            contexts.names,
        )
        description = {"source": name, "split": split, "published": True}
        folder = Path(out) / name.replace("*", "").replace("/", "_") / split
        manifests[name] = _write(folder, islice(rows, count), description, options)
    return manifests
