"""Builds reader and judges from the fields `config.reader` and `config.judge`, and the model that
writes for the systems of the tables from `config.writer`, where a config has it.

`engine` is "offline" (rules, no model), "flax" (a model folder, GGUF file or hub id in this
process) or "server" (OpenAI-compatible). The API key of a server is read from the environment
variable `key_variable` and is never written to a file.
"""

import json
from collections import deque
from collections.abc import Mapping
from typing import Any

import jax
from jax.sharding import Mesh

from experiments.lib.progress import console
from memalpha.episode import Environment
from memalpha.hub import find_folder, read_config
from memalpha.lm.interface import Counted
from memalpha.lm.local import FlaxModel, stated_context
from memalpha.lm.roles import lm_content_judge, lm_reader, lm_score_judge
from memalpha.lm.server import ServerModel, check_url
from memalpha.prompts import load_template
from memalpha.scoring import recall_judge

ROLES = ("reader", "judge")
WRITER = "writer"  # the role of the model that writes; without it the reader writes
ENGINES = ("offline", "flax", "server")
OFFLINE = {"engine": "offline"}  # also for runs of versions without these fields
# Fields that do not change the answers: they may differ when a run is continued.
OPERATION = (
    "url", "concurrency", "timeout", "retries", "cache", "key_variable", "tokens_at_once",
    "draft_tokens",
)  # fmt: skip
SPOKEN = ("template", "max_new_tokens", "temperature")  # belong to a role, not to its engine
# Of a writer they do nothing: it has its own prompts, `prompt.response_tokens` and
# `eval.temperature`. These values are right for any model.
UNUSED = {"template": "full", "max_new_tokens": 1, "temperature": 0.0}
ONE_LINE = "one_line"  # so does this, to the reader alone


def settings_of(config: Mapping[str, Any], role: str) -> dict[str, Any]:
    """The fields of a role as a plain dict; a config without them is offline."""
    given = config.get(role)
    return OFFLINE if given is None else dict(given)


def check_readers(config: Mapping[str, Any]) -> None:
    """Raises ValueError, which names the field, for invalid settings; sends no request."""
    if not 0 <= config["max_failed_share"] <= 1:
        raise ValueError(f"config.max_failed_share={config['max_failed_share']}: give 0 to 1")
    for role in (*ROLES, WRITER):
        settings = settings_of(config, role)
        if settings["engine"] not in ENGINES:
            raise ValueError(
                f"config.{role}.engine={settings['engine']!r}: give {', '.join(ENGINES)}"
            )
        if settings["engine"] != "offline":
            try:
                _check(settings | (UNUSED if role == WRITER else {}))
            except ValueError as error:
                raise ValueError(f"config.{role}: {error}") from None


def _check(settings: dict[str, Any]) -> None:
    least = {"max_new_tokens": 1, "temperature": 0, "concurrency": 1, "retries": 0}
    least |= {"context": 0, "tokens_at_once": 1, "draft_tokens": 0, "timeout": 1e-3}
    for field, value in least.items():
        if settings[field] < value:
            raise ValueError(f"{field}={settings[field]}: give at least {value}")
    load_template(settings["template"])
    if not settings["model"]:
        raise ValueError("model is empty: name the model, or set engine=offline")
    if settings["engine"] == "server":
        check_url(settings["url"])
        _extra(settings)
    else:
        folder = find_folder(settings["model"])
        read_config(folder, dtype=settings["dtype"], param_dtype=settings["dtype"])
        context = context_tokens(settings)
        if context <= settings["max_new_tokens"]:
            raise ValueError(
                f"max_new_tokens={settings['max_new_tokens']} leave no room for a prompt in a"
                f" context of {context}"
            )


def context_tokens(settings: Mapping[str, Any]) -> int:
    """Tokens of prompt and reply together, of a model in this process."""
    return settings["context"] or stated_context(find_folder(settings["model"]))


def _extra(settings: dict[str, Any]) -> dict[str, Any]:
    try:
        extra = json.loads(settings["extra"] or "{}")
    except ValueError as error:
        raise ValueError(f"extra={settings['extra']!r} is no JSON: {error}") from None
    if not isinstance(extra, dict):
        raise ValueError(f"extra={settings['extra']!r}: give a JSON object")
    return extra


def build_engines(config: Mapping[str, Any], mesh: Mesh | None = None) -> dict[str, Counted]:
    """The engine of every role that is not offline; roles with the same settings share one.

    With several processes only the first one uses a server, because all take its rewards.
    """
    by_settings: dict[str, Counted] = {}
    engines = {}
    for role in (*ROLES, WRITER):
        settings = settings_of(config, role)
        if settings["engine"] == "offline":
            continue
        if settings["engine"] == "server" and jax.process_index():
            continue
        same = json.dumps(
            {k: v for k, v in settings.items() if k not in (*SPOKEN, ONE_LINE)}, sort_keys=True
        )
        if same not in by_settings:
            by_settings[same] = Counted(_engine(settings, mesh))
        engines[role] = by_settings[same]
    return engines


def _engine(settings: dict[str, Any], mesh: Mesh | None) -> FlaxModel | ServerModel:
    if settings["engine"] == "server":
        names = ("url", "model", "concurrency", "timeout", "retries", "cache", "key_variable")
        given = {name: settings[name] for name in names}
        return ServerModel(**given, extra=_extra(settings))
    engine = FlaxModel.load(
        settings["model"],
        settings["dtype"],
        mesh,
        settings["context"],
        settings["tokens_at_once"],
        settings["draft_tokens"],
    )
    engine.on_progress = tell_progress
    return engine


def tell_progress(done: int, total: int, pace: float) -> None:
    """A line about a model that reads many chats."""
    console.print(f"read {done}/{total}  {pace:.0f} tokens/s")


def probe(engines: Mapping[str, Counted]) -> None:
    """Sends every engine a short chat; ValueError with its error message if it fails."""
    for role, engine in engines.items():
        asked = [{"role": "user", "content": "Respond with the word yes."}]
        (generation,) = engine.generate([asked], 8)
        if generation.error:
            raise ValueError(f"config.{role}: {engine.name} does not answer: {generation.error}")


def describe_usage(engines: Mapping[str, Counted]) -> list[str]:
    """A line per engine with its numbers of chats and tokens; roles may share an engine."""
    return [
        f"{engine.name}: {used.chats} chats, {used.cached} of them from the cache, {used.failed}"
        f" failed; {used.prompt_tokens} tokens read and {used.completion_tokens} generated"
        for engine in {id(engine): engine for engine in engines.values()}.values()
        for used in [engine.usage]
    ]


def with_readers(
    env: Environment, config: Mapping[str, Any], engines: Mapping[str, Counted]
) -> Environment:
    """The environment with the reader and judges of the config; their error messages are appended
    to its `failures`."""
    env = env.replace(answer_judge=recall_judge, failures=deque(maxlen=env.reading.failures.maxlen))
    note = env.reading.failures.append
    if "reader" in engines:
        spoken = _spoken(config, "reader")
        spoken[ONE_LINE] = settings_of(config, "reader").get(ONE_LINE, False)
        answerer = lm_reader(engines["reader"], **spoken, on_failure=note)
        env = env.replace(answerer=answerer)
    if "judge" in engines:
        spoken = _spoken(config, "judge")
        judge = lm_content_judge(engines["judge"], **spoken, on_failure=note)
        del spoken["template"]
        score_judge = lm_score_judge(engines["judge"], **spoken, on_failure=note)
        env = env.replace(content_judge=judge, answer_judge=score_judge)
    return env


def _spoken(config: Mapping[str, Any], role: str) -> dict[str, Any]:
    settings = settings_of(config, role)
    return {name: settings[name] for name in SPOKEN} | {
        "template": load_template(settings["template"]),
        "seed": config["seed"],
    }


def comparable(config: dict[str, Any]) -> dict[str, Any]:
    """A config (plain dict) without the fields of reader and judge that do not change results."""
    result = dict(config)
    for role in ROLES:
        settings = settings_of(config, role)
        offline = settings["engine"] == "offline"
        result[role] = OFFLINE if offline else {
            name: value for name, value in settings.items() if name not in OPERATION
        }  # fmt: skip
    return result
