"""Tokenizers: any `transformers` tokenizer by path or hub id, or a small one trained on the spot.

A from-scratch model gets a byte-level BPE whose pre-tokenizer keeps words whole and splits numbers
into pieces of at most four digits. Strings that every prompt or call repeats (tags, the constant
parts of a tool call) are given as `phrases` and become one token each, so that the short context of
a small model is used for content.
"""

import json
from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache
from pathlib import Path

from jinja2 import TemplateError
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from memalpha import gguf_tokenizer
from memalpha.gguf import is_gguf
from memalpha.models import find_file
from memalpha.paths import user_path
from memalpha.replies import MARKS

PAD_TOKEN, EOS_TOKEN = "<|endoftext|>", "<|im_end|>"  # the names that Qwen3 uses
_PIECES = Regex(r"\d{4}| ?\d{1,2}| ?\p{L}+|\s+(?=\S)| ?[^\s\p{L}\d]+|\s+")


def train_tokenizer(
    texts: Iterable[str], vocab_size: int, phrases: Sequence[str] = ()
) -> PreTrainedTokenizerFast:
    """Trains a byte-level BPE; every text, in any script, survives encoding and decoding.

    Args:
        texts: the training corpus.
        vocab_size: upper bound of the whole vocabulary, phrases and the 256 bytes included.
        phrases: strings that become single tokens; the longest match wins.

    Raises:
        ValueError: the vocabulary is too small for the bytes and the phrases.
    """
    phrases = sorted(set(phrases) - {PAD_TOKEN, EOS_TOKEN}, key=lambda p: (-len(p), p))
    room = vocab_size - len(phrases)
    if room < 258:
        raise ValueError(
            f"vocab_size {vocab_size} cannot hold 256 bytes, 2 special tokens and {len(phrases)}"
            f" phrases; give at least {258 + len(phrases)}"
        )
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(_PIECES, behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    # Phrases are added before training so that their text does not use up merges.
    tokenizer.add_special_tokens([PAD_TOKEN, EOS_TOKEN])
    added = [AddedToken(p, normalized=False, special=False) for p in phrases]
    tokenizer.add_tokens(added)
    trainer = trainers.BpeTrainer(
        vocab_size=room,
        special_tokens=[PAD_TOKEN, EOS_TOKEN],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_without(texts, phrases), trainer)
    tokenizer.add_tokens(added)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token=EOS_TOKEN, pad_token=PAD_TOKEN
    )


def _without(texts: Iterable[str], phrases: Sequence[str]) -> Iterable[str]:
    for text in texts:
        for phrase in phrases:
            text = text.replace(phrase, "\n")
        yield text


def load_tokenizer(path_or_hub_id: str) -> PreTrainedTokenizerBase:
    """Loads a tokenizer from a folder, a GGUF file, a name of `models`, or from the hub
    ("name/model", or "name/model@revision").

    Raises:
        ValueError: nothing loadable there; or it has no end-of-sequence token.
    """
    if (file := find_file(path_or_hub_id)) is not None:
        return gguf_tokenizer.load_tokenizer(file)
    folder = user_path(path_or_hub_id)
    there = folder.exists()
    name, _, revision = (str(folder), "", "") if there else path_or_hub_id.partition("@")
    try:
        tokenizer = AutoTokenizer.from_pretrained(name, revision=revision or "main")
    except (OSError, ValueError) as error:
        kind = "folder" if there else "hub id (or missing folder)"
        raise ValueError(
            f"no tokenizer could be loaded from the {kind} {path_or_hub_id!r}: {error}"
        ) from error
    if tokenizer.eos_token_id is None:
        raise ValueError(f"the tokenizer of {path_or_hub_id!r} has no end-of-sequence token")
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def stated_stops(folder: str | Path) -> tuple[int, ...]:
    """Token ids that a model states as ends of a reply: those of generation_config.json in its
    folder, or of the metadata of its GGUF file; none where it states none.

    Raises ValueError where the file is broken or holds something else than token ids.
    """
    if is_gguf(folder):
        return tuple(gguf_tokenizer.stop_ids(folder))
    path = Path(folder) / "generation_config.json"
    if not path.exists():
        return ()
    try:
        stated = json.loads(path.read_text(encoding="utf-8")).get("eos_token_id")
    except (AttributeError, ValueError) as error:
        raise ValueError(f"{path} is no JSON object ({error}): remove it, or mend it") from error
    ids = [] if stated is None else stated if isinstance(stated, list) else [stated]
    if not all(type(i) is int and i >= 0 for i in ids):
        raise ValueError(f"{path}: eos_token_id is {stated!r}: give a token id or a list of them")
    return tuple(ids)


def stop_ids(tokenizer: PreTrainedTokenizerBase, stated: Sequence[int] = ()) -> list[int]:
    """All token ids that end a response: the end of sequence, the end of a turn of the chat
    template, and those that the model states (`stated_stops`).

    Raises ValueError where the chat template fails.
    """
    return sorted({tokenizer.eos_token_id, *gguf_tokenizer.turn_end(tokenizer), *stated})


def response_end(tokenizer: PreTrainedTokenizerBase) -> int:
    """The token id that a writer puts after its response: the end of a turn of the chat template,
    else the end of sequence."""
    return [*gguf_tokenizer.turn_end(tokenizer), tokenizer.eos_token_id][0]


def encode(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """Token ids of a text, without special tokens added at its ends."""
    return tokenizer.encode(text, add_special_tokens=False)


def decode(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> str:
    """Text of token ids without special tokens. Marks of calls and of thinking are kept, although
    some tokenizers declare them as special tokens."""
    left_out = _special_ids_but_marks(tokenizer)
    if left_out is None:
        visible_ids, skip = list(ids), True
    else:
        visible_ids, skip = [token for token in map(int, ids) if token not in left_out], False
    return tokenizer.decode(
        visible_ids, skip_special_tokens=skip, clean_up_tokenization_spaces=False
    )


@lru_cache(maxsize=8)
def _special_ids_but_marks(tokenizer: PreTrainedTokenizerBase) -> frozenset[int] | None:
    """Ids that `decode` has to drop; None if the tokenizer itself drops the right ones."""
    added = tokenizer.added_tokens_decoder
    special = {i for i, token in added.items() if token.special} | set(tokenizer.all_special_ids)
    texts = {i: str(tokenizer.convert_ids_to_tokens(i)) for i in special}
    marks = {i for i, text in texts.items() if any(mark in text for mark in MARKS)}
    return frozenset(special - marks) if marks else None


@lru_cache(maxsize=8)
def cached_encoder(tokenizer: PreTrainedTokenizerBase) -> Callable[[str], list[int]]:
    """`encode` of a tokenizer with a cache, because the same contents are encoded often."""
    return lru_cache(maxsize=65_536)(lambda text: encode(tokenizer, text))


@lru_cache(maxsize=8)
def cached_decoder(tokenizer: PreTrainedTokenizerBase) -> Callable[[list[int]], str]:
    """`decode` of a tokenizer with a cache, because an entry is shown at many steps."""
    cached = lru_cache(maxsize=65_536)(lambda ids: decode(tokenizer, ids))
    return lambda ids: cached(tuple(ids))


@lru_cache(maxsize=64)
def takes_system(tokenizer: PreTrainedTokenizerBase, chat_template: str) -> bool:
    """Whether a chat template renders the text of the system role. The template is an argument, and
    so part of the cache key, because it can be replaced in a tokenizer."""
    probe = "system text"
    messages = [{"role": "system", "content": probe}, {"role": "user", "content": "user text"}]
    try:
        return probe in tokenizer.apply_chat_template(messages, tokenize=False)
    except TemplateError:
        return False


def merge_system(messages: Sequence[dict[str, str]]) -> list[dict[str, str]]:
    """The messages without the system role; its text is put before that of the first user turn."""
    system = [message["content"] for message in messages if message["role"] == "system"]
    others = [dict(message) for message in messages if message["role"] != "system"]
    first = next((message for message in others if message["role"] == "user"), None)
    if first is None:
        others.insert(0, first := {"role": "user", "content": ""})
    first["content"] = "\n\n".join(filter(None, [*system, first["content"]]))
    return others
