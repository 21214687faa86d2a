"""Readers and judges from a config: what is refused early, and what stops a run."""

import json
from pathlib import Path

import pytest
from chat_server import fails

from configs import qwen3_0_6b_single_gpu, qwen3_4b, real_text, reproduce, tiny
from experiments import main_job
from experiments.lib.checks import check
from experiments.lib.failures import ReaderFailureError, check_answers
from experiments.lib.measure import summarise, validate
from experiments.lib.objects import build_environment
from experiments.lib.readers import build_engines, check_readers, probe, with_readers
from experiments.lib.systems import Run
from experiments.lib.workdir import WorkdirError, claim_workdir
from memalpha.data import synthetic
from memalpha.judge_rules import judge_contents
from memalpha.reader_rules import extractive_answers
from memalpha.rollout import run_episodes, scripted_writer
from memalpha.scoring import recall_judge
from memalpha.tools import format_call

TIED = Path(__file__).parent / "fixtures" / "qwen3_tied"


def config(*arguments):
    return tiny.get_config(",".join(arguments))


def server(url, role="reader", **fields):
    fields = {"engine": "server", "model": "m", "url": url, "retries": 0, "cache": ""} | fields
    return [f"{role}.{name}={value}" for name, value in fields.items()]


URL = "http://127.0.0.1:9/v1"


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["reader.engine=offlien"], r"config.reader.engine='offlien': give offline, flax, server"),
        (["judge.engine=server"], "config.judge: model is empty"),
        (server("127.0.0.1"), "config.reader: server url '127.0.0.1': give an address"),
        (server("http://a:b@host/v1"), "config.reader: .*a secret has no place in it"),
        (server(URL, extra="x"), "config.reader: extra='x' is no JSON"),
        (server(URL, extra="[1]"), "config.reader: extra=.*: give a JSON object"),
        (server(URL, max_new_tokens=0), "config.reader: max_new_tokens=0"),
        (server(URL, temperature=-1.0), "config.reader: temperature=-1.0"),
        (server(URL, concurrency=0), "config.reader: concurrency=0"),
        (server(URL, timeout=0.0), "config.reader: timeout=0.0"),
        (server(URL, retries=-1), "config.reader: retries=-1"),
        (server(URL, template="fulll"), "config.reader: template 'fulll'"),
        (["reader.engine=flax", "reader.model=/nowhere"], "config.reader: model '/nowhere'"),
        (
            ["judge.engine=flax", f"judge.model={TIED}", "judge.context=512"],
            "config.judge: max_new_tokens=512 leave no room",
        ),
        (["max_failed_share=1.5"], "config.max_failed_share=1.5: give 0 to 1"),
    ],
)
def test_settings_that_cannot_work_are_refused_before_anything_is_done(arguments, message):
    with pytest.raises(ValueError, match=message):
        check(config(*arguments))


@pytest.mark.parametrize("made", [tiny, real_text, qwen3_4b, qwen3_0_6b_single_gpu, reproduce])
def test_every_config_has_the_fields_and_is_offline(made, micro):
    settings = made.get_config()
    check_readers(settings)
    assert build_engines(settings) == {}
    env = with_readers(micro.env, settings, {})
    assert (env.reading.answerer, env.reading.content_judge, env.reading.answer_judge) == (
        extractive_answers,
        judge_contents,
        recall_judge,
    )


def test_roles_of_the_same_model_share_an_engine_and_count_together(chat_server, micro):
    same = config(*server(chat_server.url), *server(chat_server.url, "judge"))
    check(same)
    engines = build_engines(same)
    assert engines["reader"] is engines["judge"] and engines["reader"].name == "m"
    probe(engines)
    assert engines["judge"].usage.chats == 2
    other = build_engines(config(*server(URL), *server(URL, "judge", model="n")))
    assert other["reader"] is not other["judge"]
    env = build_environment(same, micro.tokenizer, engines)
    assert (
        env.reading.answerer is not extractive_answers
        and env.reading.content_judge is not judge_contents
    )
    one = build_environment(config(*server(chat_server.url)), micro.tokenizer)
    assert (
        one.reading.answerer is not extractive_answers
        and one.reading.content_judge is judge_contents
    )


def test_a_model_of_its_own_writes_and_a_reader_may_answer_in_one_line(micro):
    made = reproduce.get_config("reader.one_line=True")
    for role, model in (("reader", "m"), ("writer", "w")):
        made[role].update(engine="server", url=URL, model=model)
    engines = build_engines(made)
    assert {role: engine.name for role, engine in engines.items()} == {"reader": "m", "writer": "w"}
    assert Run(None, made, micro.env, engines).model.name == "w"
    assert with_readers(micro.env, made, engines).reading.answerer.name.endswith(", one line")
    made.writer.update(model="m", max_new_tokens=9)
    engines = build_engines(made)
    assert engines["reader"] is engines["writer"]
    made.writer.update(max_new_tokens=0, template="none of its own", temperature=-1.0)
    check_readers(made)  # they do nothing
    made.writer.url = "x"
    with pytest.raises(ValueError, match="config.writer: server url 'x': give an address"):
        check_readers(made)


def test_the_probe_speaks_in_the_words_of_the_server(chat_server):
    chat_server.behave = lambda body, number: fails(500, "no GPU here")
    with pytest.raises(ValueError, match="config.judge: m does not answer: 500: no GPU here"):
        probe(build_engines(config(*server(chat_server.url, "judge"))))


def test_the_key_is_nowhere_in_the_workdir(chat_server, monkeypatch, tmp_path):
    monkeypatch.setenv("LM_TEST_KEY", "sk-a-key-of-the-tests")
    made = config(*server(chat_server.url, key_variable="LM_TEST_KEY"))
    probe(build_engines(made))
    assert chat_server.keys == ["Bearer sk-a-key-of-the-tests"]
    folder = claim_workdir(str(tmp_path), made)
    assert "sk-a-key" not in (folder / "config.json").read_text()
    assert "LM_TEST_KEY" in (folder / "config.json").read_text()


def test_a_run_goes_on_where_only_the_way_to_its_server_changed(tmp_path):
    claim_workdir(str(tmp_path), config(*server(URL)))
    (tmp_path / "tokenizer").mkdir()
    moved = config(*server("http://127.0.0.1:10/v1", concurrency=2, timeout=1.0))
    folder = claim_workdir(str(tmp_path), moved)
    assert json.loads((folder / "config.json").read_text())["reader"]["concurrency"] == 2
    with pytest.raises(WorkdirError, match="reader.model: was 'm', is 'n'"):
        claim_workdir(str(tmp_path), config(*server(URL, model="n")))


def test_a_run_from_before_there_were_language_models_was_offline(tmp_path):
    path = claim_workdir(str(tmp_path), config()) / "config.json"
    before = json.loads(path.read_text())
    del before["reader"], before["judge"]
    path.write_text(json.dumps(before))
    (tmp_path / "tokenizer").mkdir()
    with pytest.raises(WorkdirError, match="reader.engine: was 'offline', is 'server'"):
        claim_workdir(str(tmp_path), config(*server(URL)))
    claim_workdir(str(tmp_path), config("reader.max_new_tokens=9"))
    assert build_engines(before) == {}


@pytest.fixture
def half_answered(chat_server, micro):
    """Config, environment and writer where the server refuses every second question."""

    def behave(body, number):
        return fails(400, "the context is full") if number % 2 else "no answer"

    chat_server.behave = behave
    made = config(*server(chat_server.url, concurrency=1))
    made.data.sources = ("synthetic_facts",)
    env = with_readers(micro.env, made, build_engines(made))
    call = format_call("new_memory_insert", {"memory_type": "core", "content": "x"}, "qwen3")
    return made, env, scripted_writer(env, lambda turn: call)


def test_too_many_failures_stop_with_the_words_of_the_server(half_answered):
    made, env, writer = half_answered
    instance = synthetic.generate("facts", "test", 0)
    episodes = run_episodes(env, [instance], writer)
    share = summarise(episodes)["unanswered"]
    asked = len(instance.questions)
    assert share == pytest.approx((asked // 2) / asked) and asked > 2
    with pytest.raises(ReaderFailureError) as caught:
        check_answers(made, episodes, "step 3")
    text = str(caught.value)
    assert text.startswith("step 3: reader, judge or writer left ")
    assert "max_failed_share=10%" in text and "400: the context is full" in text
    made.max_failed_share = 1.0
    check_answers(made, episodes, "step 3")


def test_validation_and_the_final_table_stop_as_well(half_answered, monkeypatch):
    made, env, writer = half_answered
    made.eval.update(instances=1, test_instances=1)
    monkeypatch.setattr("experiments.lib.measure.trained_writer", lambda *_: writer)
    monkeypatch.setattr(main_job, "trained_writer", lambda *_: writer)
    with pytest.raises(ReaderFailureError, match="^validation: .*the context is full"):
        validate(made, env, None, None)
    with pytest.raises(ReaderFailureError, match="^test, perfect writer: .*the context is full"):
        main_job.final_table(made, env, None, None, None)


def test_a_judge_that_gives_no_verdicts_stops_the_run(chat_server, micro):
    chat_server.behave = lambda body, number: "I would rather not say."
    made = config(*server(chat_server.url, "judge"))
    env = with_readers(micro.env, made, build_engines(made))
    call = format_call("new_memory_insert", {"memory_type": "semantic", "content": "x"}, "qwen3")
    instance = synthetic.generate("facts", "test", 0)
    episodes = run_episodes(env, [instance], scripted_writer(env, lambda turn: call))
    with pytest.raises(ReaderFailureError, match="100% of the steps.*I would rather not say"):
        check_answers(made, episodes, "step 0")
