"""Our own Flax model as a language model of `lm`: a pretrained one, or a model from scratch.

Chats are sorted by length, read and decoded in batches (`blocks`). The keys and values of what many
chats of a call begin with, such as the questions over one memory, are computed once and kept, so
that the next call with the same instructions reads only what is new in it. Parameters on a mesh
keep their shardings.
"""

import math
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import lru_cache, partial
from os.path import commonprefix
from pathlib import Path

import jax
from jax.sharding import Mesh, NamedSharding

from memalpha import blocks, sampler
from memalpha.drafts import Drafts, make_drafts
from memalpha.hub import find_folder, read_config, read_fields
from memalpha.lm.interface import Chat, Generation, Seed, check_seeds, cut_at
from memalpha.model import Cache, ModelConfig, Params, init_params
from memalpha.prompts import encode_messages
from memalpha.sharding import check_heads, mesh_of, shardings, spec_of
from memalpha.tokenizer import decode, encode, load_tokenizer, stated_stops, stop_ids
from memalpha.tools import clean
from memalpha.weights import load_params, trim_memory

PREFIX_STEP = blocks.BLOCK  # tokens; a common start is used to a multiple of it
# Tokens that are not read again are worth a batch of their own: a CPU reads slowly.
WORTH, WORTH_ON_CPU = 65_536, 1024
KEPT_TOKENS = 8192  # of the starts whose keys and values are kept for the next call
PROGRESS_SECONDS = 5.0  # between two reports of one call

# Told of a long call now and then: chats done, chats in all, tokens a second so far.
OnProgress = Callable[[int, int, float], None]


class FlaxModel:
    """Model, parameters and tokenizer as an engine.

    Chats go through the chat template of the tokenizer, thinking off, where it has one; else as
    plain text, as the writers from scratch are trained (`prompts.encode_messages`).
    """

    def __init__(
        self,
        name: str,
        config: ModelConfig,
        params: Params,
        tokenizer,
        context_tokens: int,
        tokens_at_once: int = 65_536,
        stop_ids: Sequence[int] = (),
        drafts: Drafts | None = None,
    ):
        """
        Args:
            context_tokens: limit of prompt and completion together.
            tokens_at_once: limit of all rows of a batch together, padding included; a batch of one
                chat may exceed it.
            stop_ids: end a reply, as the tokenizer's end of sequence does.
            drafts: the same replies in fewer passes, where they repeat the chat or `drafts.text`.

        The attribute `on_progress` is called every `PROGRESS_SECONDS` of a call with the chats that
        are done, all chats, and the tokens read and generated a second.
        """
        if context_tokens < 2 or tokens_at_once < 1:
            raise ValueError(
                f"{name}: context_tokens={context_tokens}, tokens_at_once={tokens_at_once}: give at"
                " least 2 and 1"
            )
        if len(tokenizer) > config.vocab_size:
            raise ValueError(
                f"{name}: the tokenizer has {len(tokenizer)} tokens, the model {config.vocab_size}:"
                " give the tokenizer of this model"
            )
        self.name, self.config, self.params, self.tokenizer = name, config, params, tokenizer
        self.context_tokens, self.tokens_at_once = context_tokens, tokens_at_once
        self.stop_ids = sorted({tokenizer.eos_token_id, *stop_ids})
        self.drafts = make_drafts(0) if drafts is None else drafts
        self.on_progress: OnProgress | None = None
        self._on_cpu = jax.default_backend() == "cpu"
        self._kept: list[tuple[list[int], Cache]] = []  # starts, the newest first
        mesh = mesh_of(params)
        self._parts = 1 if mesh is None else mesh.shape["data"] * mesh.shape["fsdp"]

    @classmethod
    def load(
        cls,
        path_or_hub_id: str,
        dtype: str = "bfloat16",
        mesh: Mesh | None = None,
        context_tokens: int = 0,
        tokens_at_once: int = 65_536,
        draft_tokens: int = 0,
    ) -> "FlaxModel":
        """The model of a folder, GGUF file or hub id ("name@revision"), or a name of `models`;
        context_tokens 0: as it states.

        Raises:
            ValueError: it cannot be loaded, the mesh does not divide it, or its context is shorter
                than `context_tokens`.
        """
        folder = find_folder(path_or_hub_id)
        config = read_config(folder, dtype=dtype, param_dtype=dtype, attention="auto")
        context = context_tokens or stated_context(folder)
        if context > stated_context(folder):
            raise ValueError(
                f"{path_or_hub_id}: a context of {context} tokens is asked for, but its config.json"
                f" states {stated_context(folder)}"
            )
        where = None
        if mesh is not None:
            check_heads(mesh, config.num_kv_heads)
            shardings(jax.eval_shape(partial(init_params, config), jax.random.key(0)), mesh)
            where = lambda path: NamedSharding(mesh, spec_of(path))
        revision = f"@{folder.name}" if folder.parent.name == "snapshots" else ""
        tokenizer = load_tokenizer(path_or_hub_id)
        try:
            stops = stop_ids(tokenizer, stated_stops(folder))
        except ValueError as error:
            raise ValueError(f"{path_or_hub_id}: {error}") from error
        params = jax.block_until_ready(load_params(folder, config, where))
        trim_memory()
        return cls(
            f"{path_or_hub_id.partition('@')[0]}{revision} in {dtype}",
            config,
            params,
            tokenizer,
            context,
            tokens_at_once,
            stops,
            make_drafts(draft_tokens),
        )

    def generate(
        self,
        prompts: Sequence[Chat],
        max_new_tokens: int,
        temperature: float = 0.0,
        seed: Seed = 0,
        tools: Sequence[dict] | None = None,
        stop: Sequence[str] = (),
    ) -> list[Generation]:
        """See `lm.LanguageModel`. A sample depends on the text of its chat and on its own seed, or
        where there is one seed for all, on that and on the place of the chat in `prompts`. A chat
        that does not fit the context is an error in its generation. `tools` is not used: the chats
        describe the tools. A `stop` saves time where it stands inside one token, as line ends do.
        """
        encoded = [self._encode(chat) for chat in prompts]
        ends = ids_with(self.tokenizer, tuple(stop))
        replies = self.complete(encoded, max_new_tokens, temperature, seed, ends)
        return [
            Generation("", len(ids), error=self._refusal(len(ids), max_new_tokens))
            if reply is None
            else Generation(
                cut_at(decode(self.tokenizer, reply.tokens), stop), len(ids), len(reply.tokens)
            )
            for ids, reply in zip(encoded, replies, strict=True)
        ]

    def complete(
        self,
        prompts: Sequence[Sequence[int]],
        max_new_tokens: int,
        temperature: float = 0.0,
        seed: Seed = 0,
        ends: Collection[int] = (),
    ) -> list[blocks.Reply | None]:
        """`generate` in token ids: the reply to each prompt; None where the prompt is empty or does
        not fit the context. `ends`: ids that end a reply beside `stop_ids`."""
        if max_new_tokens < 1:
            raise ValueError(f"generate: max_new_tokens={max_new_tokens}; give at least 1")
        check_seeds(seed, len(prompts))
        root, numbers = (seed, range(len(prompts))) if isinstance(seed, int) else (0, seed)
        results: list[blocks.Reply | None] = [None] * len(prompts)
        room = self.context_tokens - max_new_tokens
        fitting = {i: ids for i, ids in enumerate(prompts) if 0 < len(ids) <= room}
        ends = sorted({*self.stop_ids, *ends})
        progress = _Progress(len(fitting), self.on_progress)
        groups = alike(fitting, WORTH_ON_CPU if self._on_cpu else WORTH)
        if len(groups) > 1 and (shared := common_start(list(fitting.values()))):
            self._start(shared)
        for group in groups:
            waiting = sorted(group, key=lambda i: -len(prompts[i]))
            shared = common_start([prompts[i] for i in group])
            start = self._start(shared, len(groups) == 1) if shared else None
            while waiting:
                rows = self._rows(len(prompts[waiting[0]]) + max_new_tokens, len(waiting))
                taken, waiting = waiting[:rows], waiting[rows:]
                ids = [*(int(numbers[i]) for i in taken), *_fillers(rows - len(taken))]
                text = self.drafts.text.tolist()
                under_way = blocks.begin(
                    self.params,
                    self.config,
                    start,
                    [prompts[i][len(shared) :] for i in taken],
                    sampler.row_keys(jax.random.key(root), ids),
                    max_new_tokens,
                    [text + list(prompts[i]) for i in taken] if self.drafts.size else (),
                )
                progress.add(sum(len(prompts[i]) for i in taken))
                replies = blocks.finish(
                    self.params,
                    self.config,
                    under_way,
                    temperature,
                    ends,
                    progress.add,
                    self.drafts.size,
                )
                for i, reply in zip(taken, replies, strict=False):
                    results[i] = reply
                progress.end(len(taken))
        return results

    def _encode(self, chat: Chat) -> list[int]:
        """Token ids of a chat; lone surrogates, which no tokenizer takes, are replaced."""
        messages = [{name: clean(value) for name, value in message.items()} for message in chat]
        return encode_messages(messages, self.tokenizer)

    def _refusal(self, prompt: int, max_new_tokens: int) -> str:
        if not prompt:
            return "the prompt has no tokens"
        return (
            f"the prompt has {prompt} tokens, which with {max_new_tokens} for the reply exceed the"
            f" context of {self.context_tokens} of {self.name}"
        )

    def _rows(self, width: int, waiting: int) -> int:
        """Rows of a batch: a power of two, rounded up to a multiple of the mesh's data shards. A
        CPU computes empty rows as slowly as others: there at most a fourth of the power is empty.
        """
        most = 2 ** int(math.log2(max(1, self.tokens_at_once // width)))
        enough = _power_above(waiting)
        if self._on_cpu and 4 * waiting < 3 * enough:
            enough //= 2
        rows = min(most, enough)
        return -(-rows // self._parts) * self._parts

    def _start(self, tokens: list[int], keep: bool = True) -> Cache:
        """The keys and values of a start, from those of an earlier one as far as that is the same;
        keep: for later ones."""
        common = lambda ids: len(commonprefix([ids, tokens]))
        known, kept = max(
            ((common(ids), cache) for ids, cache in self._kept),
            key=lambda x: x[0],
            default=(0, None),
        )
        known = known // PREFIX_STEP * PREFIX_STEP
        start = blocks.head_of(kept, known) if known else None
        if known < len(tokens):
            start = blocks.prolong(self.params, self.config, start, tokens[known:])
        if not keep:
            return start
        others = [one for one in self._kept if common(one[0]) < len(one[0]) / 2]
        room, self._kept = KEPT_TOKENS, []
        for one in [(tokens, start), *others]:
            if len(one[0]) <= room:
                room -= len(one[0])
                self._kept.append(one)
        return start


class _Progress:
    """Counts what a call has done and tells of it, not too often."""

    def __init__(self, chats: int, tell: OnProgress | None):
        self._chats, self._tell, self._done, self._tokens = chats, tell, 0, 0
        self._begin = self._last = time.monotonic()

    def add(self, tokens: int) -> None:
        """Tokens that were read or generated."""
        self._tokens += tokens
        now = time.monotonic()
        if self._tell and now - self._last >= PROGRESS_SECONDS:
            self._last = now
            self._tell(self._done, self._chats, self._tokens / max(now - self._begin, 1e-9))

    def end(self, chats: int) -> None:
        """Chats that are done."""
        self._done += chats
        self.add(0)


@lru_cache(maxsize=8)
def ids_with(tokenizer, stop: tuple[str, ...]) -> frozenset[int]:
    """Ids of the tokens inside which one of the texts stands, as far as their spelling in the
    vocabulary shows it; that of added tokens may not."""
    spelled = ["".join(tokenizer.convert_ids_to_tokens(encode(tokenizer, text))) for text in stop]
    tokens = tokenizer.get_vocab().items() if stop else ()
    return frozenset(i for token, i in tokens if any(text in token for text in spelled))


def alike(prompts: Mapping[int, Sequence[int]], worth: int) -> list[list[int]]:
    """The keys of prompts in groups that are read together, that of the longest prompt first, so
    that a batch that does not fit the device fails at once.

    Prompts that have more than half of their tokens in common with a neighbour, in the order of
    their tokens, share a group if that spares `worth` tokens of reading. All others are one group.
    """
    order, runs = sorted(prompts, key=lambda i: list(prompts[i])), []
    for i in order:
        before = prompts[runs[-1][-1]] if runs else ()
        longest = max(len(before), len(prompts[i]))
        if runs and 2 * len(commonprefix([before, prompts[i]])) > longest:
            runs[-1].append(i)
        else:
            runs.append([i])
    groups, rest = [], []
    for run in runs:
        spared = (len(run) - 1) * len(common_start([prompts[i] for i in run]))
        if spared >= worth:
            groups.append(sorted(run))
        else:
            rest += run
    groups += [sorted(rest)] if rest else []
    return sorted(groups, key=lambda group: -max(len(prompts[i]) for i in group))


def common_start(prompts: Sequence[Sequence[int]]) -> list[int]:
    """What all of the prompts begin with, to a multiple of `PREFIX_STEP` tokens and so that each of
    them goes on."""
    if not prompts:
        return []
    size = min(len(commonprefix(prompts)), min(map(len, prompts)) - 1)
    return list(prompts[0][: size // PREFIX_STEP * PREFIX_STEP])


def _fillers(count: int) -> list[int]:
    """Numbers for the keys of rows that are empty."""
    return [2**31 - 1 - i for i in range(count)]


def _power_above(n: int) -> int:
    return 1 << (n - 1).bit_length()


def stated_context(folder: Path) -> int:
    """The positions that a model folder or GGUF file states; ValueError if it does not."""
    given, path = read_fields(folder)
    stated = given.get("max_position_embeddings")
    if not isinstance(stated, int):
        raise ValueError(f"{path} lacks max_position_embeddings: give the context")
    return stated
