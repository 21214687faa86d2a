"""From published files to a built folder: what `python -m memalpha.data build` does."""

from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from itertools import islice
from pathlib import Path
from typing import Any

from memalpha.data import SOURCES, published, store
from memalpha.data.checks import drop_unanswerable
from memalpha.data.instance import Instance
from memalpha.data.sizes import Sizes, default_sizes


def from_originals(
    source: str,
    split: str,
    raw_dir: str | Path,
    out: str | Path,
    sizes: Sizes | None = None,
    seed: int = 0,
    count_tokens: Callable[[str], int] = lambda text: len(text.split()),
    tokens: str = "words",
    shrink: bool = False,
    drop: bool = False,
    overwrite: bool = False,
    records: Any = None,
) -> dict[str, Any]:
    """Build a source into out/<source>/<split> and return the manifest of `store.write`.

    Args:
        raw_dir: as `data_dir` of `load_source`.
        sizes: of the instances; by default those of the paper (`sizes.default_sizes`).
        count_tokens: the counter, and `tokens` its name for the manifest.
        shrink: where the files at hand do not fill `sizes.chunks` chunks, take as many as they do.
        drop: leave out questions whose answer is nowhere in the chunks.
        records: what the loader of the source gave for raw_dir, if it has been read already.
    """
    if source not in SOURCES:
        raise ValueError(f"unknown data source {source!r}; known: {', '.join(SOURCES)}")
    load, _ = SOURCES[source]
    sizes = sizes or default_sizes(source, split)
    records = load(raw_dir) if records is None else records

    def make(some: Sizes) -> Iterator[Instance]:
        return make_instances(source, records, split, some, seed, count_tokens)

    if shrink:
        sizes = _shrink(make, sizes)
    described = asdict(sizes)
    # A function cannot be written down; what it did is in the metadata of every instance.
    described["options"] = {k: v for k, v in sizes.options.items() if not callable(v)}
    description = {"source": source, "split": split, "seed": seed, "tokens": tokens, **described}
    return store.write(
        Path(out) / source / split,
        _dropped(make(sizes)) if drop else make(sizes),
        description | {"drop_unanswerable": drop},
        count_tokens,
        overwrite,
    )


def make_instances(
    source: str,
    records: Any,
    split: str,
    sizes: Sizes,
    seed: int,
    count_tokens: Callable[[str], int],
) -> Iterator[Instance]:
    """The instances of a source from what its loader gave, in these sizes."""
    _, build = SOURCES[source]
    shape = (sizes.count, seed, sizes.chunks, sizes.chunk_tokens, sizes.questions)
    return build(records, *shape, count_tokens, split, **sizes.options)


def _dropped(instances: Iterator[Instance]) -> Iterator[Instance]:
    return (kept for instance in instances if (kept := drop_unanswerable(instance)) is not None)


def _shrink(make: Callable[[Sizes], Iterator[Instance]], sizes: Sizes) -> Sizes:
    """The sizes with the most chunks (at most sizes.chunks) that the files fill."""

    def works(chunks: int) -> bool:
        try:
            return next(make(replace(sizes, chunks=chunks)), None) is not None
        except ValueError:
            return False

    if works(sizes.chunks):
        return sizes
    low, high = 0, sizes.chunks  # low works (or nothing does), high does not
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if works(middle) else (low, middle)
    return replace(sizes, chunks=max(low, 1))  # if nothing works, the build itself says why


def from_parquet(
    path: str | Path,
    split: str,
    out: str | Path,
    source: str = "",
    count: int | None = None,
    chunk_tokens: int = 2048,
    count_tokens: Callable[[str], int] = lambda text: len(text.split()),
    tokens: str = "words",
    entities: str | Path | None = None,
    drop: bool = False,
    overwrite: bool = False,
) -> dict[str, dict[str, Any]]:
    """Bring a published parquet into out/<source>/<split>, one folder a source: {source: manifest}.

    Args:
        source: only rows whose source is this one or a published variant of it.
        count: at most so many instances of a source.
        entities: entity2id.json, for the recommendation sets of MemoryAgentBench.

    The other arguments are those of `published.read` and `from_originals`. The file is read once a
    source, so that no more than a few rows are in memory.
    """
    names = published.read_entity_names(entities) if entities else None

    def read(keep: Callable[[str], bool]) -> Iterator[Instance]:
        return published.read(path, split, keep, chunk_tokens, count_tokens, names)

    found = [name for name in published.source_names(path) if not source or _is(name, source)]
    if not found:
        held = ", ".join(published.source_names(path))
        raise ValueError(f"{path}: no rows of source {source!r}; it holds {held}")
    manifests = {}
    for name in found:
        rows = islice(read(lambda other, name=name: other == name), count)
        description = {"source": name, "split": split, "published": True, "tokens": tokens}
        manifests[name] = store.write(
            Path(out) / name.replace("*", "").replace("/", "_") / split,
            _dropped(rows) if drop else rows,
            description | {"drop_unanswerable": drop},
            count_tokens,
            overwrite,
        )
    return manifests


def _is(name: str, source: str) -> bool:
    plain = name.lower().replace("-", "_").rstrip("*").removeprefix("icl_")
    return plain == source or plain.startswith(f"{source}_")
