"""What every config shares: arguments after the colon, `--config=configs/x.py:smoke,seed=1`."""

import ast
from collections.abc import Callable, Mapping
from typing import Any

from ml_collections import config_dict


def finish(
    config: config_dict.ConfigDict,
    arguments: str,
    presets: Mapping[str, Callable[[config_dict.ConfigDict], None]],
) -> config_dict.ConfigDict:
    """Applies the comma-separated arguments in order, each a preset's name or `field=value`, and
    locks the config, so that a misspelt field is an error that suggests the nearest name."""
    config.lock()
    for argument in filter(None, arguments.split(",")):
        if "=" in argument:
            field, value = argument.split("=", 1)
            try:
                config.update_from_flattened_dict({field: _value(config, field, value)})
            except (AttributeError, KeyError) as error:
                raise ValueError(f"config argument {argument!r}: {error}") from None
        elif argument in presets:
            presets[argument](config)
        else:
            raise ValueError(
                f"unknown config argument {argument!r}: give {', '.join(presets)} or field=value"
            )
    return config


def language_model(**changes: Any) -> dict[str, Any]:
    """The fields of `config.reader`, `config.judge` and, where a config has it, `config.writer`;
    docs/evaluation.md says what they do."""
    return dict(
        engine="offline",  # or flax, server
        model="",  # flax: folder or hub id (with @revision); server: model name
        template="full",  # the built-in one for pretrained models, or a folder
        max_new_tokens=2048,
        temperature=0.0,
        one_line=False,  # a reader's reply ends with its first line; for small models
        # flax
        dtype="bfloat16",
        context=0,  # tokens of prompt and reply; 0: as the model states
        tokens_at_once=65_536,  # of all rows of a batch
        draft_tokens=0,  # copied from the chat, checked in one pass; same replies but for rounding
        # server
        url="",  # such as http://127.0.0.1:8000/v1
        key_variable="OPENAI_API_KEY",  # environment variable with the key; unset: none
        concurrency=16,
        timeout=120.0,  # seconds
        retries=6,  # after waits of 1, 2, 4 ... s: about a minute in all
        cache="~/.cache/memalpha/lm.sqlite",  # empty: no cache
        extra="",  # JSON: further fields of a request
    ) | changes  # fmt: skip


def smoke(config: config_dict.ConfigDict) -> None:
    """Preset: every stage in a minute and a half, too short to learn anything."""
    # Such a short run mostly compiles, so use one layer and few shapes (all rows at once).
    config.model.num_layers = 1
    config.warm_start.update(steps=60, copy_steps=20, quote_steps=20)
    config.warm_start.update(copy_rows=48, rows=16, micro_batch=0)
    config.rl.update(steps=8, rollouts=4, micro_batch=0)
    config.eval.update(every=4, instances=1, test_instances=2)
    config.checkpoint_every = 4


def ppo(config: config_dict.ConfigDict) -> None:
    """Preset: PPO with a critic in place of GRPO."""
    config.rl.algorithm = "ppo"
    config.rl.call_credit = False


def _value(config: config_dict.ConfigDict, field: str, text: str):
    here = config
    for name in field.split(".")[:-1]:
        here = getattr(here, name)
    if isinstance(getattr(here, field.split(".")[-1]), str):
        return text
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        raise ValueError(f"config argument {field}={text!r}: not a value of its type") from None
