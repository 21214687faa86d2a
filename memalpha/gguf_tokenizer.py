"""The tokenizer of a GGUF file as a `transformers` tokenizer with the same ids as the hub's.

Everything is read from the metadata: the vocabulary, the merges, the rule that splits a text into
words, the special tokens, the chat template, and the tokens that end a reply.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from jinja2 import TemplateError
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, processors
from tokenizers import pre_tokenizers as split
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from memalpha.gguf_file import Header, read_header

UNKNOWN, CONTROL, USER_DEFINED, UNUSED = 2, 3, 4, 5  # tokenizer.ggml.token_type
# Words of Llama 3 and Qwen; %s is the pattern of digits, which differs between them.
_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|%s| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_SPACE = "▁"  # how SentencePiece writes a space


def _byte_level(*splits: split.PreTokenizer) -> split.PreTokenizer:
    return split.Sequence([*splits, split.ByteLevel(add_prefix_space=False, use_regex=False)])


def _words(digits: str) -> split.PreTokenizer:
    return _byte_level(split.Split(Regex(_WORDS % digits), behavior="isolated"))


# tokenizer.ggml.pre -> the pre-tokenizer of the hub's tokenizers of these models.
SPLITS = {
    "llama-bpe": _words(r"\p{N}{1,3}"),
    "qwen2": _words(r"\p{N}"),
    "smollm": split.Sequence(
        [split.Digits(individual_digits=True), split.ByteLevel(add_prefix_space=False)]
    ),
    "gpt-2": split.ByteLevel(add_prefix_space=False),
}


def load_tokenizer(path: str | Path) -> PreTrainedTokenizerBase:
    """The tokenizer of a file.

    Raises:
        ValueError: see `gguf_file.read_header`; no vocabulary, an unsupported kind or splitting
            rule, or parts that are inconsistent with each other or with the model.
    """
    header = read_header(path)
    tokens = _tokens(header)
    types = header.metadata.get("tokenizer.ggml.token_type") or [1] * len(tokens)
    if len(types) != len(tokens):
        raise ValueError(
            f"{header.path}: {len(tokens)} tokens, but {len(types)} types of tokens: convert the"
            " model anew"
        )
    while types and types[-1] == UNUSED:  # padding of the embedding, not in the hub's tokenizers
        tokens, types = tokens[:-1], types[:-1]
    kind = header.metadata["tokenizer.ggml.model"]
    build = {"gpt2": _byte_pairs, "llama": _sentence_pieces}.get(kind)
    if build is None:
        raise ValueError(
            f"{header.path}: tokenizer.ggml.model is {kind!r}; only 'gpt2' and 'llama' are"
            " supported: give the folder of this model instead"
        )
    inner = build(header, {token: i for i, token in enumerate(tokens)})
    for special, wanted in ((True, (CONTROL, UNKNOWN)), (False, (USER_DEFINED,))):
        # SentencePiece matches user-defined pieces after it has replaced spaces by "▁".
        normalized = not special and kind == "llama"
        chosen = [t for t, of in zip(tokens, types, strict=True) if of in wanted]
        add = inner.add_special_tokens if special else inner.add_tokens
        add([AddedToken(t, normalized=normalized, special=special) for t in chosen])
    return _wrap(header, inner, tokens, types)


def stop_ids(path: str | Path) -> list[int]:
    """Tokens that end a reply according to the metadata: end of sequence, turn or message."""
    header = read_header(path)
    count = len(_tokens(header))
    ids = {_token_id(header, name, count) for name in ("eos", "eot", "eom")}
    return sorted(ids - {None})


def turn_end(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The special token that the chat template puts after a reply, if any, as a list. It ends the
    replies of a chat model and may differ from the end-of-sequence token (Gemma).

    Raises:
        ValueError: the template fails on a chat of a question and a reply.
    """
    if not tokenizer.chat_template:
        return []
    reply = "0123456789"
    chat = [{"role": "user", "content": "?"}, {"role": "assistant", "content": reply}]
    try:
        text = tokenizer.apply_chat_template(chat, tokenize=False)
    except (TemplateError, TypeError, ValueError) as error:
        raise ValueError(
            f"the chat template fails on a question and a reply: {error}; give the model another"
        ) from error
    after = text.rpartition(reply)[2].strip()
    ids = tokenizer.encode(after, add_special_tokens=False)[:1]
    added = tokenizer.added_tokens_decoder  # not all of them have a role such as eos
    special = {i for i, token in added.items() if token.special} | {*tokenizer.all_special_ids}
    return [i for i in ids if i in special]


def _tokens(header: Header) -> list[str]:
    tokens = header.metadata.get("tokenizer.ggml.tokens")
    if not tokens or "tokenizer.ggml.model" not in header.metadata:
        raise ValueError(
            f"{header.path} holds no tokenizer (tokenizer.ggml.tokens): give the folder of this"
            " model instead, or convert it anew"
        )
    if len(set(tokens)) < len(tokens):
        twice = sorted({token for token in tokens if tokens.count(token) > 1})
        raise ValueError(f"{header.path}: the token {twice[0]!r} is there twice")
    rows = header.tensors.get("token_embd.weight")
    if rows is not None and len(tokens) > rows.shape[0]:
        raise ValueError(
            f"{header.path}: the tokenizer has {len(tokens)} tokens, but the model {rows.shape[0]}:"
            " they do not belong together; convert the model anew"
        )
    return tokens


def _byte_pairs(header: Header, vocab: Mapping[str, int]) -> Tokenizer:
    """Byte-level BPE, used by GPT-2, Llama 3 and Qwen."""
    rule = header.metadata.get("tokenizer.ggml.pre")
    if rule not in SPLITS:
        raise ValueError(
            f"{header.path}: tokenizer.ggml.pre is {rule!r}; supported are {', '.join(SPLITS)}:"
            " give the folder of this model instead"
        )
    merges = _merges(header)
    if not merges:
        raise ValueError(f"{header.path} has no tokenizer.ggml.merges: convert the model anew")
    # Llama 3 uses a token for a whole word even if no sequence of merges produces it.
    whole = rule == "llama-bpe"
    tokenizer = _merge_model(header, vocab, merges, ignore_merges=whole)
    if rule == "qwen2":
        tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer, tokenizer.decoder = SPLITS[rule], decoders.ByteLevel()
    return tokenizer


def _sentence_pieces(header: Header, vocab: Mapping[str, int]) -> Tokenizer:
    """BPE of SentencePiece, used by Llama 2 and Gemma: unknown characters become byte tokens."""
    scores = header.metadata.get("tokenizer.ggml.scores", [])
    if len(scores) < len(vocab):
        raise ValueError(f"{header.path}: {len(vocab)} tokens, but {len(scores)} scores of tokens")
    merges = _merges(header) or _merges_from_scores(vocab, scores)
    names = list(vocab)
    unknown = names[header.metadata.get("tokenizer.ggml.unknown_token_id", 0)]
    choices = {"unk_token": unknown, "fuse_unk": True, "byte_fallback": True}
    tokenizer = _merge_model(header, vocab, merges, **choices)
    decoding = [decoders.Replace(_SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    if header.metadata.get("tokenizer.ggml.add_space_prefix", True):
        tokenizer.pre_tokenizer = split.Metaspace(_SPACE, prepend_scheme="first", split=False)
        decoding.append(decoders.Strip(" ", 1, 0))
    else:
        tokenizer.normalizer = normalizers.Replace(" ", _SPACE)
    tokenizer.decoder = decoders.Sequence(decoding)
    return tokenizer


def _merge_model(header: Header, vocab: Mapping[str, int], merges, **choices) -> Tokenizer:
    try:
        return Tokenizer(models.BPE(dict(vocab), merges, **choices))
    except Exception as error:  # `tokenizers` raises no narrower class
        raise ValueError(
            f"{header.path}: the merges do not fit the tokens ({error}): convert the model anew"
        ) from error


def _merges(header: Header) -> list[tuple[str, str]]:
    pairs = []
    for merge in header.metadata.get("tokenizer.ggml.merges", []):
        left, space, right = merge[1:].partition(" ")  # a piece may itself begin with a space
        if not space:
            raise ValueError(f"{header.path}: the merge {merge!r} is no pair of tokens")
        pairs.append((merge[0] + left, right))
    return pairs


def _merges_from_scores(vocab: Mapping[str, int], scores: Sequence[float]) -> list[tuple[str, str]]:
    """Merges equivalent to SentencePiece, which joins the pair whose result has the best score: all
    ways to split each token in two, ordered by the score of the token."""
    pairs = []
    for token, i in vocab.items():
        for at in range(1, len(token)):
            left, right = token[:at], token[at:]
            if left in vocab and right in vocab:
                pairs.append((-scores[i], vocab[left], vocab[right], left, right))
    return [(left, right) for *_, left, right in sorted(pairs)]


def _wrap(
    header: Header, inner: Tokenizer, tokens: Sequence[str], types: Sequence[int]
) -> PreTrainedTokenizerBase:
    ids = {name: _token_id(header, name, len(tokens)) for name in ("bos", "eos", "padding")}
    if ids["eos"] is None:
        raise ValueError(f"{header.path} has no tokenizer.ggml.eos_token_id: convert it anew")
    if ids["padding"] is None:
        ids["padding"] = ids["eos"]
    named = {name: tokens[i] for name, i in ids.items() if i is not None}
    sentence_pieces = header.metadata["tokenizer.ggml.model"] == "llama"
    default = sentence_pieces or header.metadata.get("tokenizer.ggml.pre") == "llama-bpe"
    if header.metadata.get("tokenizer.ggml.add_bos_token", default) and "bos" in named:
        bos = named["bos"]
        inner.post_processor = processors.TemplateProcessing(
            single=f"{bos} $A", special_tokens=[(bos, ids["bos"])]
        )
    control = [t for t, of in zip(tokens, types, strict=True) if of == CONTROL]
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=inner,
        bos_token=named.get("bos"),
        eos_token=named["eos"],
        pad_token=named["padding"],
        extra_special_tokens=[t for t in control if t not in named.values()],
        clean_up_tokenization_spaces=False,
    )
    tokenizer.chat_template = header.metadata.get("tokenizer.chat_template")
    return tokenizer


def _token_id(header: Header, name: str, count: int) -> int | None:
    key = f"tokenizer.ggml.{name}_token_id"
    value = header.metadata.get(key)
    if value is not None and not 0 <= value < count:
        raise ValueError(f"{header.path}: {key} is {value}, but there are {count} tokens")
    return value
