"""The Flax model as an engine: the same tokens as the sampler gives, and what does not fit."""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from memalpha import blocks, sampler
from memalpha.drafts import make_drafts
from memalpha.lm import local
from memalpha.lm.local import PREFIX_STEP, FlaxModel, common_start, ids_with, stated_context
from memalpha.memory import MemoryView
from memalpha.model import init_params
from memalpha.policy import load_policy
from memalpha.prompts import encode_messages
from memalpha.rollout import scripted_writer
from memalpha.tokenizer import (
    decode,
    load_tokenizer,
    response_end,
    stated_stops,
    stop_ids,
    train_tokenizer,
)
from memalpha.weights import export

TIED = Path(__file__).parent / "fixtures" / "qwen3_tied"
NEW = 6  # tokens of a reply
CHAT = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@pytest.fixture(scope="module")
def params(micro):
    """Kernels so large that the model does not repeat what it has read last."""
    made = init_params(micro.model, jax.random.key(5))
    grow = lambda x: 9 * x if x.ndim == 2 else x
    return {name: x if name == "embed" else jax.tree.map(grow, x) for name, x in made.items()}


def engine(micro, params, **options):
    options = {"context_tokens": 256, "tokens_at_once": 300} | options
    return FlaxModel("micro", micro.model, params, micro.tokenizer, **options)


def ask(*texts):
    return [[{"role": "user", "content": text}] for text in texts]


TEXTS = ["Rex is a dog.", "Basel " * 30, "x", "The head office of Alpina Press is in Basel.", "y z"]


def alone(micro, params, chat, temperature=0.0, key=None):
    """Tokens of the reply to one chat and of the chat, straight from the sampler."""
    prompt = encode_messages(chat, micro.tokenizer)
    tokens, mask = sampler.pad_prompts([prompt], [101])
    keys = sampler.row_keys(jax.random.key(0), [0]) if key is None else key
    end = jnp.asarray([micro.tokenizer.eos_token_id])
    samples = sampler.generate(
        params, micro.model, tokens, mask, keys, temperature, 1.0, jnp.asarray([NEW]), end, NEW
    )
    return np.asarray(samples.tokens[0])[np.asarray(samples.mask[0])].tolist(), len(prompt)


def test_greedy_replies_are_those_of_the_sampler_whatever_the_company(micro, params):
    chats = ask(*TEXTS)
    given = engine(micro, params).generate(chats, NEW)
    for chat, generation in zip(chats, given, strict=True):
        tokens, size = alone(micro, params, chat)
        assert generation.text == decode(micro.tokenizer, tokens)
        assert generation.prompt_tokens == size
        assert generation.completion_tokens == len(tokens)
        assert not generation.error and not generation.cached
    assert len({g.text for g in given}) > 1
    one_by_one = [engine(micro, params).generate([chat], NEW)[0] for chat in chats]
    assert one_by_one == given


def spy_on_starts(monkeypatch):
    """The tokens of each start that is read from now on."""
    prolong, read = blocks.prolong, []
    spy = lambda params, config, start, tokens: (
        read.append(len(tokens)) or prolong(params, config, start, tokens)
    )
    monkeypatch.setattr(blocks, "prolong", spy)
    return read


def test_a_common_beginning_is_computed_once_and_changes_nothing(micro, params, monkeypatch):
    """A chat that is the beginning of the others still has tokens of its own."""
    start = "Basel and the head office. " * 16
    chats = ask(start, start + "Rex is a dog.", start + "x", start + "Where is Alpina Press?")
    model = engine(micro, params, context_tokens=512, tokens_at_once=1200)
    read = spy_on_starts(monkeypatch)
    together = model.generate(chats, NEW, temperature=0.7, seed=range(4))
    (shared,) = read
    sizes = [g.prompt_tokens for g in together]
    assert shared == (min(sizes) - 1) // PREFIX_STEP * PREFIX_STEP >= PREFIX_STEP
    monkeypatch.setattr(local, "common_start", lambda prompts: [])
    alone = [model.generate([c], NEW, temperature=0.7, seed=[i])[0] for i, c in enumerate(chats)]
    assert together == alone and len({g.text for g in alone}) > 1 and read == [shared]


def test_beginnings_of_one_call_do_not_push_out_that_of_another(micro, params, monkeypatch):
    monkeypatch.setattr(local, "WORTH_ON_CPU", PREFIX_STEP)
    monkeypatch.setattr(local, "WORTH", PREFIX_STEP)
    monkeypatch.setattr(local, "KEPT_TOKENS", 700)
    model = engine(micro, params, context_tokens=1024)
    writer = "Basel and the head office. " * 30
    model.generate(ask(writer), NEW)
    texts = [f"Ana {n}. " + f"Rex {n} is a dog of Ana. " * 20 for n in range(4)]
    model.generate(ask(*(text + end for text in texts for end in ("x", "Whose dog?"))), NEW)
    read = spy_on_starts(monkeypatch)
    model.generate(ask(writer + "x"), NEW)
    assert sum(read) <= PREFIX_STEP


def test_chats_over_two_texts_share_two_beginnings(micro, params, monkeypatch):
    texts = ["Basel and the head office. " * 16, "Rex is a dog of Ana. " * 18]
    ends = ["x", "Where is Alpina Press?", "Whose dog is Rex?"]
    chats = ask(*(text + end for end in ends for text in texts), "Who is Ana?")
    monkeypatch.setattr(local, "WORTH_ON_CPU", 2 * PREFIX_STEP)
    monkeypatch.setattr(local, "WORTH", 2 * PREFIX_STEP)
    model, read = engine(micro, params, context_tokens=512), spy_on_starts(monkeypatch)
    together = model.generate(chats, NEW, temperature=0.7, seed=range(len(chats)))
    assert len(read) == 2
    alone = [
        engine(micro, params, context_tokens=512).generate([c], NEW, temperature=0.7, seed=[i])[0]
        for i, c in enumerate(chats)
    ]
    assert together == alone


def test_prompts_are_grouped_where_that_spares_reading():
    long, other = list(range(1, 200)), [7] * 150
    prompts = {
        3: [*long, 300], 5: [*other, 1], 8: [*long, 301], 9: [*long[:40], 302], 11: [*other, 2],
        12: [0],
    }  # fmt: skip
    assert local.alike(prompts, worth=190) == [[3, 8], [5, 9, 11, 12]]
    assert local.alike(prompts, worth=128) == [[3, 8], [5, 11], [9, 12]]
    assert local.alike(prompts, worth=10_000) == [[3, 5, 8, 9, 11, 12]]
    assert local.alike({}, worth=1) == [] and local.alike({4: [1, 2]}, worth=1) == [[4]]


def test_a_cpu_computes_few_empty_rows(micro, params):
    model = engine(micro, params, tokens_at_once=64 * 64)
    waiting = (1, 2, 3, 5, 6, 9, 12, 13, 20, 24, 33)
    model._on_cpu = True
    assert [model._rows(64, n) for n in waiting] == [1, 2, 4, 4, 8, 8, 16, 16, 16, 32, 32]
    model._on_cpu = False
    assert [model._rows(64, n) for n in waiting] == [1, 2, 4, 8, 8, 16, 16, 16, 32, 32, 64]
    model.tokens_at_once = 64 * 8
    assert [model._rows(64, n) for n in (9, 33)] == [8, 8]


def test_the_next_call_reads_what_is_new_in_it(micro, params, monkeypatch):
    """Two kinds of prompts in turn, as those of a writer and a reader; the third call of a kind
    goes on from the second."""
    kinds = ["Basel and the head office. " * 32, "Rex is a dog of Ana. " * 24]
    ends = ["x", "Where is Alpina Press?" * 5, "Whose dog is Rex?" * 9]
    model = engine(micro, params, context_tokens=1024)
    fresh = [
        [engine(micro, params, context_tokens=1024).generate(ask(kind + end), NEW) for end in ends]
        for kind in kinds
    ]
    read = spy_on_starts(monkeypatch)
    for i in range(len(ends)):
        for j, kind in enumerate(kinds):
            assert model.generate(ask(kind + ends[i]), NEW) == fresh[j][i]
    sizes = [[given[0].prompt_tokens for given in each] for each in fresh]
    assert read[:2] == [(size[0] - 1) // PREFIX_STEP * PREFIX_STEP for size in sizes]
    assert max(read[2:]) < min(read[:2]) and len(model._kept) == 2


def test_no_more_is_kept_than_there_is_room_for(micro, params, monkeypatch):
    monkeypatch.setattr(local, "KEPT_TOKENS", 100)
    model = engine(micro, params, context_tokens=1024)
    model.generate(ask("Basel and the head office. " * 32), NEW)
    assert model._kept == []
    model.generate(ask("Rex is a dog of Ana. " * 9), NEW)
    model.generate(ask("Basel and the head office. " * 32), NEW)  # too long, and pushes nothing out
    assert [len(ids) for ids, _ in model._kept] == [PREFIX_STEP]


def test_a_start_is_common_to_all_and_of_few_lengths():
    row = list(range(200))
    assert common_start([row, row]) == row[:192]
    assert common_start([row[:65], row]) == row[:64] and common_start([row[:64], row]) == []
    assert common_start([]) == common_start([row, [1, *row]]) == []
    assert common_start([row]) == row[:192] and common_start([row[:65]]) == row[:64]


def test_long_calls_report_what_is_done(micro, params, monkeypatch):
    reports, model = [], engine(micro, params)
    model.on_progress = lambda *report: reports.append(report)
    monkeypatch.setattr(local, "PROGRESS_SECONDS", 1e9)
    model.generate(ask(*TEXTS), NEW)
    assert reports == []
    monkeypatch.setattr(local, "PROGRESS_SECONDS", 0.0)
    model.generate(ask(*TEXTS), NEW)
    assert list(dict.fromkeys(report[:2] for report in reports)) == [(0, 5), (2, 5), (5, 5)]
    assert all(report[2] > 0 for report in reports)


def test_samples_depend_on_seed_and_place_alone(micro, params):
    chats = ask(*["Rex is a dog."] * 5)
    one = engine(micro, params).generate(chats, NEW, temperature=1.0, seed=1)
    narrow = engine(micro, params, tokens_at_once=1)
    assert narrow.generate(chats, NEW, temperature=1.0, seed=1) == one
    assert len({g.text for g in one}) > 1
    assert engine(micro, params).generate(chats, NEW, temperature=1.0, seed=2) != one
    tokens, _ = alone(micro, params, chats[3], 1.0, sampler.row_keys(jax.random.key(1), [3]))
    assert one[3].text == decode(micro.tokenizer, tokens)


def test_batches_keep_to_their_size_the_longest_first(micro, params, monkeypatch):
    sizes = []

    def nothing(params, config, start, texts, keys, *_):
        sizes.append((len(keys), max(map(len, texts))))
        return len(keys)

    monkeypatch.setattr(blocks, "begin", nothing)
    monkeypatch.setattr(blocks, "finish", lambda *args: [blocks.Reply([], 0)] * args[2])
    texts = [f"{n} " * n for n in range(1, 12)] + ["Basel " * 30]
    engine(micro, params).generate(ask(*texts), NEW)
    assert [rows for rows, _ in sizes] == [2, 8, 2]
    assert sizes == sorted(sizes, key=lambda size: -size[1])
    assert all(rows * (longest + NEW) <= 300 for rows, longest in sizes)


def test_a_prompt_that_does_not_fit_is_an_error_and_never_cut(micro, params):
    one = engine(micro, params, context_tokens=40)
    size = len(encode_messages(ask(TEXTS[3])[0], micro.tokenizer))
    long, short, empty = one.generate(ask("Basel " * 90, "x", ""), NEW)
    assert long.text == "" and "context of 40" in long.error and long.prompt_tokens > 40
    assert not short.error and short.completion_tokens > 0
    assert empty.error == "the prompt has no tokens"
    edge = engine(micro, params, context_tokens=size + NEW)
    assert not edge.generate(ask(TEXTS[3]), NEW)[0].error
    assert edge.generate(ask(TEXTS[3]), NEW + 1)[0].error
    assert one.generate([], NEW) == []
    with pytest.raises(ValueError, match="max_new_tokens=0"):
        one.generate(ask("x"), 0)


def test_a_cache_grows_with_the_reply_and_finished_rows_leave(micro, params, monkeypatch):
    """The same tokens whatever the sizes; ends are spread, so rows leave one after another."""
    chats, tokens = ask(*(f"{n} Basel" * n for n in range(1, 9))), 40
    whole = engine(micro, params, tokens_at_once=4096)
    ends = [blocks.STEPS + 1, 3, 5, 2, 4, 6, 1, 40]
    given = whole.generate(chats, tokens, 1.0, seed=range(8))
    monkeypatch.setattr(blocks, "slots_for", lambda n: -(-n // 16) * 16)
    limited = lambda rows: rows.replace(limits=jnp.asarray(ends, jnp.int32))
    begin = blocks.begin
    monkeypatch.setattr(blocks, "begin", lambda *args: limited(begin(*args)))
    taken, take = [], blocks._take
    monkeypatch.setattr(
        blocks, "_take", lambda rows, order: taken.append(len(order)) or take(rows, order)
    )
    order = sorted(range(8), key=lambda i: -given[i].prompt_tokens)
    short = engine(micro, params, tokens_at_once=4096).generate(chats, tokens, 1.0, seed=range(8))
    for row, i in enumerate(order):
        assert given[i].text.startswith(short[i].text)
        assert short[i].completion_tokens == min(ends[row], given[i].completion_tokens)
    assert taken


@pytest.mark.parametrize("size", [3, 40])
def test_drafts_change_only_the_number_of_passes(micro, params, monkeypatch, size):
    """Rows end one after another, the cache grows, and holes between its tokens are closed."""
    monkeypatch.setattr(blocks, "slots_for", lambda n: -(-n // 16) * 16)
    closed, close = [], blocks._close
    monkeypatch.setattr(blocks, "_close", lambda rows: closed.append(1) or close(rows))
    prompts = [encode_messages(chat, micro.tokenizer) for chat in ask(*TEXTS, "Basel Basel", "is")]
    how = {"tokens_at_once": 4096, "stop_ids": range(0, 1000, 90)}
    base = engine(micro, params, **how).complete(prompts, 40, 1.0, range(7))
    assert [reply.passes for reply in base] == [len(reply.tokens) for reply in base]
    lengths = sorted(len(reply.tokens) for reply in base)
    assert lengths[0] < lengths[-1] and not closed
    longest = max(base, key=lambda reply: len(reply.tokens))
    drafts = make_drafts(size, longest.tokens)
    for prompted in (prompts, prompts[::-1]):
        order = range(7) if prompted is prompts else range(6, -1, -1)
        replies = engine(micro, params, **how, drafts=drafts).complete(prompted, 40, 1.0, order)
        for i, reply in zip(order, replies, strict=True):
            assert reply.tokens == base[i].tokens and reply.passes <= base[i].passes
        best = replies[list(order).index(base.index(longest))]
        assert best.passes < len(best.tokens) / 2
    (alone,) = engine(micro, params, drafts=drafts, **how).complete(prompts[1:2], 40, 1.0, [1])
    assert alone.tokens == base[1].tokens and closed


def test_a_stop_token_ends_a_reply(micro, params):
    tokens, _ = alone(micro, params, ask("x")[0])
    assert len(tokens) > 1
    (stopped,) = engine(micro, params, stop_ids=[tokens[0]]).generate(ask("x"), NEW)
    assert stopped.completion_tokens == 1


def test_a_reply_ends_before_a_stop_text_and_saves_the_rest(micro, params):
    """Token by token where the text stands inside one token; else the reply is only cut."""
    model = engine(micro, params)
    (whole,) = model.generate(ask(TEXTS[3]), NEW)
    tokens, _ = alone(micro, params, ask(TEXTS[3])[0])
    pieces = [decode(micro.tokenizer, [token]) for token in tokens]
    new = next(i for i in range(1, NEW) if pieces[i] not in "".join(pieces[:i]))
    (stopped,) = model.generate(ask(TEXTS[3]), NEW, stop=[pieces[new], "not there"])
    assert stopped.text == "".join(pieces[:new])
    assert stopped.completion_tokens == new + 1 < whole.completion_tokens
    pair = "".join(pieces[new - 1 : new + 1])
    (cut,) = model.generate(ask(TEXTS[3]), NEW, stop=[pair])
    assert cut.text == "".join(pieces[: new - 1]) != whole.text
    assert cut.completion_tokens == whole.completion_tokens
    assert model.generate(ask(TEXTS[3]), NEW, stop=[]) == [whole]


def test_tokens_with_a_line_end_inside(micro):
    ids = ids_with(micro.tokenizer, ("\n",))
    assert {decode(micro.tokenizer, [i]) for i in ids} >= {"\n"}
    assert all("\n" in decode(micro.tokenizer, [i]) for i in ids)
    assert ids_with(micro.tokenizer, ()) == frozenset()


def test_wrong_sizes_are_refused(micro, params):
    with pytest.raises(ValueError, match="context_tokens=1"):
        engine(micro, params, context_tokens=1)
    more = train_tokenizer([], 2000, [f"<phrase {n}>" for n in range(1200)])
    with pytest.raises(ValueError, match="give the tokenizer of this model"):
        FlaxModel("m", micro.model, params, more, 64)


@pytest.fixture
def folder(tmp_path, micro):
    """A published model with a tokenizer that fits it, and a chat template."""
    made = tmp_path / "models--me--small" / "snapshots" / "abc123"
    shutil.copytree(TIED, made)
    words = {"<|endoftext|>": 0, "<|im_end|>": 1, "<|im_start|>": 2, "user": 3, "assistant": 4}
    words |= {f"w{n}": n for n in range(5, 60)}
    tokenizer = word_tokenizer(words)
    tokenizer.chat_template = CHAT
    tokenizer.save_pretrained(made)
    (made / "generation_config.json").write_text(json.dumps({"eos_token_id": [1, 7]}))
    return made


def word_tokenizer(words):
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    made = Tokenizer(models.WordLevel(words, unk_token="w59"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    made.add_special_tokens(["<|endoftext|>", "<|im_end|>", "<|im_start|>"])
    return PreTrainedTokenizerFast(
        tokenizer_object=made, eos_token="<|im_end|>", pad_token="<|endoftext|>"
    )


def test_a_published_folder_with_its_chat_template_and_stops(folder):
    loaded = FlaxModel.load(str(folder), dtype="float32")
    assert loaded.name == f"{folder}@abc123 in float32"
    assert loaded.context_tokens == stated_context(folder) == 32_768
    assert loaded.stop_ids == [1, 7]
    (given,) = loaded.generate(ask("w8 w9"), NEW)
    # start, user, two words, end, start, assistant: the template and no more
    assert given.prompt_tokens == 7 and given.completion_tokens > 0 and not given.error
    assert FlaxModel.load(str(folder), context_tokens=64).context_tokens == 64
    with pytest.raises(ValueError, match="states 32768"):
        FlaxModel.load(str(folder), context_tokens=99_999)
    (folder / "generation_config.json").unlink()
    assert FlaxModel.load(str(folder)).stop_ids == [1]


def test_a_folder_is_a_writer_with_the_same_stops_and_so_is_its_export(
    folder, tmp_path, monkeypatch
):
    """The end of a turn of the template, which is not the end of sequence here, the list of
    generation_config.json, and the end of sequence."""
    tokenizer = load_tokenizer(str(folder))
    tokenizer.eos_token = "<|endoftext|>"
    tokenizer.save_pretrained(folder)
    given = []

    def spy(*args):
        given.append(args[8].tolist())
        return sampler.Samples(
            jnp.zeros((1, 4), int),
            jnp.zeros((1, 4), bool),
            jnp.zeros((1, 4)),
            jnp.ones(1, bool),
            jnp.ones(1, int),
        )

    monkeypatch.setattr(sampler, "generate", spy)
    policy = load_policy(folder)
    prompt = policy.env.prompt
    policy.writer()(
        [SimpleNamespace(view=MemoryView("", (), (), 0, 0, 0), text="w8", chunk=0, episode=0)]
    )
    assert given == [FlaxModel.load(str(folder)).stop_ids] == [[0, 1, 7]]
    out = export(
        policy.params, policy.model, tmp_path / "out", prompt.tokenizer, stops=prompt.stops
    )
    assert set(load_policy(out).env.prompt.stops) == {0, 1, 7}
    env = policy.env.replace(response_tokens=4)
    turn = SimpleNamespace(text="w9")
    assert scripted_writer(env, lambda turn: turn.text)([turn])[0].tokens.tolist() == [9, 1]


def test_a_tokenizer_from_scratch_has_one_end(micro):
    assert stop_ids(micro.tokenizer) == [micro.tokenizer.eos_token_id]
    assert response_end(micro.tokenizer) == micro.tokenizer.eos_token_id
    assert micro.env.prompt.stops == ()


@pytest.mark.parametrize(
    "text", ["{", "[1]", '{"eos_token_id": "<end>"}', '{"eos_token_id": [-1]}']
)
def test_stops_that_are_no_token_ids_are_refused(tmp_path, text):
    (tmp_path / "generation_config.json").write_text(text)
    with pytest.raises(ValueError, match="generation_config.json"):
        stated_stops(tmp_path)


# As Gemma's: it refuses the system role, and turns have to alternate.
NO_SYSTEM = (
    "{% if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}"
    "{% endif %}" + CHAT
)
DROPS_SYSTEM = CHAT.replace("for m in messages", "for m in messages if m.role != 'system'")


@pytest.mark.parametrize("template", [NO_SYSTEM, DROPS_SYSTEM], ids=["refuses", "drops"])
def test_where_a_template_has_no_system_role_its_text_goes_before_the_users(template):
    words = {"<|endoftext|>": 0, "<|im_end|>": 1, "<|im_start|>": 2, "user": 3, "assistant": 4}
    tokenizer = word_tokenizer(words | {f"w{n}": n for n in range(5, 60)})
    system, user = {"role": "system", "content": "w5"}, {"role": "user", "content": "w6"}
    tokenizer.chat_template = CHAT.replace("m.role", "'user'")
    assert encode_messages([system, user], tokenizer) == [2, 3, 5, 1, 2, 3, 6, 1, 2, 4]
    tokenizer.chat_template = template
    merged = [2, 3, 5, 6, 1, 2, 4]
    assert encode_messages([system, user], tokenizer) == merged
    assert encode_messages([user], tokenizer) == [2, 3, 6, 1, 2, 4]
    assert encode_messages([system], tokenizer) == [2, 3, 5, 1, 2, 4]


def test_a_chat_with_a_lone_surrogate_is_answered(micro, params):
    (given,) = engine(micro, params).generate(ask("Rex \ud83d"), NEW)
    (same,) = engine(micro, params).generate(ask("Rex \ufffd"), NEW)
    assert given == same and not given.error
