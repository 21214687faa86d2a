"""Tokenizers of GGUF files: the hub's ids, special tokens, ends, and what is refused."""

import itertools
import json
import random

import numpy as np
import pytest
from gguf_files import TEMPLATE, TOKENIZER, llama
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoTokenizer, Qwen2Tokenizer

from memalpha.gguf_tokenizer import SPLITS, load_tokenizer, stop_ids, turn_end

TEXTS = [
    "On 2024-01-05 Ann's dog  didn't eat 12345 apples; she'll call 555-0199.",
    "naïve café, cafe\u0301, 東京 и Москва — العربية 👩‍👩‍👧",
    "def f(x):\n    return x**2  # two\n\n\n\tif x:\r\n        print('a')  \n",
    " leading and trailing  ",
    "<tool_call>{}</tool_call><|end|><|user|>",
]
CORPUS = TEXTS * 5 + ["The pet of Anna Berger is a parrot. It was 2019/03/14, 07:45."] * 20
text = st.text(st.characters(exclude_categories=["Cs"]), max_size=60)


def trained(rule, size=420):
    """Vocabulary and merges of a byte-level BPE that was trained with a splitting rule."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = SPLITS[rule]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=size, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(CORPUS, trainer)
    merges = json_merges(tokenizer)
    vocab = sorted(tokenizer.get_vocab(), key=tokenizer.get_vocab().get)
    return vocab, merges


def json_merges(tokenizer):
    return [" ".join(pair) for pair in json.loads(tokenizer.to_str())["model"]["merges"]]


def stored(path, rule, tokens, merges, **more):
    special = ["<|end|>", "<|user|>", "<tool_call>"]
    fields = TOKENIZER | {
        "pre": rule,
        "tokens": [*tokens, *special],
        "token_type": [1] * len(tokens) + [3, 3, 4],
        "merges": merges,
        "eos_token_id": len(tokens),
    }
    rows = np.zeros((len(tokens) + 8, 32))
    return llama(path, {}, {"token_embd.weight": rows}, fields | more)


@pytest.fixture(scope="module")
def qwen(tmp_path_factory):
    """A tokenizer of the file, and the class of `transformers` of the same vocabulary."""
    vocab, merges = trained("qwen2")
    path = stored(tmp_path_factory.mktemp("gguf") / "m.gguf", "qwen2", vocab, merges)
    theirs = Qwen2Tokenizer(
        {token: i for i, token in enumerate(vocab)},
        [tuple(merge.split(" ")) for merge in merges],
        unk_token=None,
        eos_token="<|end|>",
        pad_token="<|end|>",
    )
    return load_tokenizer(path), theirs


@settings(max_examples=100, deadline=None)
@given(st.one_of(text, st.sampled_from(TEXTS[:4])))
def test_ids_are_those_of_the_hubs_class(qwen, words):
    ours, theirs = qwen
    assert ours.encode(words) == theirs.encode(words)


@pytest.mark.parametrize(
    "rule, words, pieces",
    [
        ("qwen2", "I'm 2024,\n\n  ok", ["I", "'m", "Ġ", "2", "0", "2", "4", ",ĊĊ", "Ġ", "Ġok"]),
        ("llama-bpe", "I'm 12345,  ok", ["I", "'m", "Ġ", "123", "45", ",", "Ġ", "Ġok"]),
        ("smollm", "I'm 2024,\n ok", ["I", "'m", "Ġ", "2", "0", "2", "4", ",", "Ċ", "Ġok"]),
        ("gpt-2", "I'm 2024,\n ok", ["I", "'m", "Ġ2024", ",", "Ċ", "Ġok"]),
    ],
)
def test_words_as_each_rule_splits_them(rule, words, pieces):
    """By hand from the published rules; Qwen and Llama 3 keep line ends with the mark before."""
    assert [piece for piece, _ in SPLITS[rule].pre_tokenize_str(words)] == pieces


@pytest.mark.parametrize("rule", [*SPLITS])
def test_each_rule_merges_as_it_was_trained(tmp_path, rule):
    vocab, merges = trained(rule)
    tokenizer = load_tokenizer(stored(tmp_path / "m.gguf", rule, vocab, merges))
    reference = Tokenizer(
        models.BPE({t: i for i, t in enumerate(vocab)}, [tuple(m.split(" ")) for m in merges])
    )
    reference.pre_tokenizer, reference.decoder = SPLITS[rule], decoders.ByteLevel()
    for words in TEXTS[:4]:
        words = words.replace("e\u0301", "é")  # Qwen's composes it
        ids = tokenizer.encode(words, add_special_tokens=False)
        assert tokenizer.decode(ids) == words
        if rule != "llama-bpe":  # which takes known words whole
            assert ids == reference.encode(words).ids


def test_llama_3_takes_a_known_word_whole(tmp_path):
    vocab, _ = trained("llama-bpe", 260)
    path = stored(tmp_path / "m.gguf", "llama-bpe", [*vocab, "Ġparrot", "ar"], ["a r"])
    tokenizer = load_tokenizer(path)
    assert tokenizer.tokenize("a parrot parrots")[:2] == ["a", "Ġparrot"]
    assert len(tokenizer.tokenize("a parrot parrots")) > 4


def test_special_tokens_template_and_ends_come_from_the_metadata(tmp_path):
    vocab, merges = trained("smollm", 300)
    count = len(vocab)
    path = stored(
        tmp_path / "m.gguf", "smollm", vocab, merges, bos_token_id=count + 1,
        add_bos_token=True, eot_token_id=5,
    )  # fmt: skip
    tokenizer = load_tokenizer(path)
    assert (tokenizer.bos_token, tokenizer.eos_token, tokenizer.pad_token) == (
        "<|user|>", "<|end|>", "<|end|>",
    )  # fmt: skip
    assert tokenizer.all_special_tokens == ["<|user|>", "<|end|>"]
    assert tokenizer.chat_template == TEMPLATE
    ids = tokenizer.encode("a<tool_call>b<|end|>")
    assert ids[0] == count + 1 and ids[-1] == count and count + 2 in ids
    assert tokenizer.decode(ids, skip_special_tokens=True) == "a<tool_call>b"
    chat = [{"role": "user", "content": "Hi"}]
    ids = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_dict=False)
    assert tokenizer.decode(ids) == "<|user|>user: Hi<|end|>\n<|user|>assistant: "
    assert stop_ids(path) == [5, count] and turn_end(tokenizer) == [count]


def test_the_end_of_a_turn_may_be_another_than_that_of_the_sequence(tmp_path):
    """As in Gemma, whose metadata name <eos> alone."""
    vocab, merges = trained("qwen2", 300)
    path = stored(tmp_path / "m.gguf", "qwen2", vocab, merges, eos_token_id=len(vocab) + 1)
    assert stop_ids(path) == [len(vocab) + 1]
    tokenizer = load_tokenizer(path)
    assert turn_end(tokenizer) == [len(vocab)]
    tokenizer.chat_template = "{% for m in messages %}{{ m['content'] }}\n{% endfor %}"
    assert turn_end(tokenizer) == []
    tokenizer.chat_template = None
    assert turn_end(tokenizer) == []
    tokenizer.chat_template = "{{ raise_exception('no assistant here') }}"
    with pytest.raises(ValueError, match="template fails on a question and a reply: no assistant"):
        turn_end(tokenizer)


def test_padding_of_the_vocabulary_is_left_out(tmp_path):
    tokens = [*TOKENIZER["tokens"], "[PAD0]", "[PAD1]"]
    fields = TOKENIZER | {"tokens": tokens, "token_type": [*TOKENIZER["token_type"], 5, 5]}
    rows = {"token_embd.weight": np.zeros((264, 32))}
    tokenizer = load_tokenizer(llama(tmp_path / "m.gguf", {}, rows, fields))
    assert len(tokenizer) == 261


def test_a_saved_tokenizer_gives_the_same_ids(tmp_path, qwen):
    qwen[0].save_pretrained(tmp_path)
    again = AutoTokenizer.from_pretrained(tmp_path)
    for words in TEXTS:
        assert again.encode(words) == qwen[0].encode(words)
    assert (again.eos_token, again.pad_token) == (qwen[0].eos_token, qwen[0].pad_token)
    assert again.chat_template == TEMPLATE


PIECES = ["<unk>", "<s>", "</s>", *(f"<0x{b:02X}>" for b in range(256)), *"▁abcde"]


def sentence_pieces(path, prefix=True, seed=0, **more):
    """A vocabulary of random pieces with random scores, as SentencePiece would keep them."""
    rng = random.Random(seed)
    pieces = {"".join(rng.choices("▁abcde", k=rng.choice([2, 2, 3, 4]))) for _ in range(60)}
    pieces = sorted(pieces)
    rng.shuffle(pieces)
    plain = len(PIECES) - 6
    fields = {
        "model": "llama",
        "pre": "default",
        "tokens": [*PIECES, *pieces],
        "token_type": [2, 3, 3, *[6] * 256, *[1] * (6 + len(pieces))],
        "scores": [0.0] * plain + [-100.0] * 6 + [-float(i + 1) for i in range(len(pieces))],
        "bos_token_id": 1,
        "eos_token_id": 2,
        "unknown_token_id": 0,
        "add_space_prefix": prefix,
    }
    rows = {"token_embd.weight": np.zeros((400, 32))}
    return llama(path, {}, rows, fields | more), {p: -i for i, p in enumerate(pieces)}


def join_best(words, scores):
    """SentencePiece from its description: join the two neighbours whose whole has the best score,
    the first of equals, until no two have a whole."""
    pieces = list(words)
    while True:
        wholes = [
            (scores[a + b], -i)
            for i, (a, b) in enumerate(itertools.pairwise(pieces))
            if a + b in scores
        ]
        if not wholes:
            return pieces
        at = -max(wholes)[1]
        pieces[at : at + 2] = ["".join(pieces[at : at + 2])]


def test_sentence_pieces_join_by_score(tmp_path):
    rng = random.Random(1)
    for prefix in (True, False):
        path, scores = sentence_pieces(tmp_path / f"{prefix}.gguf", prefix, add_bos_token=False)
        tokenizer = load_tokenizer(path)
        for _ in range(200):
            words = "".join(rng.choices("abcde ", k=rng.randint(1, 30)))
            written = ("▁" if prefix else "") + words.replace(" ", "▁")
            if prefix and words.startswith(" "):
                continue  # whether a space goes before a space differs between implementations
            assert tokenizer.tokenize(words) == join_best(written, scores)
            assert tokenizer.decode(tokenizer.encode(words)) == words


def test_sentence_pieces_fall_back_to_bytes(tmp_path):
    path, _ = sentence_pieces(tmp_path / "m.gguf")
    tokenizer = load_tokenizer(path)
    ids = tokenizer.encode("é")
    assert tokenizer.convert_ids_to_tokens(ids) == ["<s>", "▁", "<0xC3>", "<0xA9>"]
    assert tokenizer.decode(ids, skip_special_tokens=True) == "é"


@pytest.mark.parametrize(
    "change, message",
    [
        ({"model": "t5"}, "tokenizer.ggml.model is 't5'; only 'gpt2' and 'llama'"),
        ({"pre": "tekken"}, "tokenizer.ggml.pre is 'tekken'; supported are llama-bpe, qwen2"),
        ({"tokens": TOKENIZER["tokens"] + ["an"]}, "the token 'an' is there twice"),
        ({"tokens": TOKENIZER["tokens"][:-1]}, "260 tokens, but 261 types of tokens"),
        ({"tokens": TOKENIZER["tokens"] + ["x1", "x2"]}, "has 263 tokens, but the model 261"),
        ({"merges": ["a n", "an"]}, "the merge 'an' is no pair of tokens"),
        ({"merges": ["a zz"]}, "the merges do not fit the tokens .*convert the model anew"),
        ({"merges": None}, "has no tokenizer.ggml.merges"),
        ({"eos_token_id": 999}, "eos_token_id is 999, but there are 261 tokens"),
        ({"eos_token_id": None}, "has no tokenizer.ggml.eos_token_id"),
        ({"tokens": None}, r"holds no tokenizer \(tokenizer.ggml.tokens\)"),
        ({"model": "llama"}, "261 tokens, but 0 scores"),
    ],
)
def test_tokenizers_that_are_refused_by_name(tmp_path, change, message):
    fields = {k: v for k, v in (TOKENIZER | change).items() if v is not None}
    path = llama(tmp_path / "m.gguf", tokenizer=fields)
    with pytest.raises(ValueError, match=f"m.gguf.*{message}"):
        load_tokenizer(path)
