"""Hugging Face transformers on torch: `generate`, and a GRPO step by autograd and AdamW."""

import numpy as np
import torch
from transformers import GenerationConfig, Qwen3Config, Qwen3ForCausalLM

from benchmarks.shapes import (
    BETA,
    CLIP,
    FIRST_ID,
    LEARNING_RATE,
    MAX_NORM,
    Shape,
    check_count,
)


def build(shape: Shape) -> Qwen3ForCausalLM:
    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=shape.vocab,
        hidden_size=shape.hidden,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads,
        head_dim=shape.head_dim,
        intermediate_size=shape.mlp,
        tie_word_embeddings=True,
        rope_theta=1e6,
        max_position_embeddings=4096,
        attn_implementation="sdpa",
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=0,
    )
    model = Qwen3ForCausalLM(config).float()
    check_count(shape, sum(p.numel() for p in model.parameters()))
    return model


def generate(settings: dict, rounds) -> None:
    """`cache`: "dynamic" as it comes, or "static", whose forward pass is compiled (transformers
    itself does not compile it on CPU)."""
    cache = settings.pop("cache")
    shape = Shape(**settings)
    model = build(shape).eval()
    if cache == "static":
        model.forward = torch.compile(model.forward, dynamic=False)
    how = GenerationConfig(
        do_sample=True, temperature=1.0, top_k=0, top_p=1.0, max_new_tokens=shape.new,
        eos_token_id=None, bos_token_id=None, pad_token_id=0,
        cache_implementation="static" if cache == "static" else None,
    )  # fmt: skip
    for _ in rounds:
        prompts = torch.randint(FIRST_ID, shape.vocab, (shape.batch, shape.prompt))
        mask = torch.ones_like(prompts)
        with torch.inference_mode():
            out = model.generate(input_ids=prompts, attention_mask=mask, generation_config=how)
        if tuple(out.shape) != (shape.batch, shape.prompt + shape.new):
            raise ValueError(f"expected {shape.new} new tokens a row, got {tuple(out.shape)}")


def step(settings: dict, rounds) -> None:
    """Logits at completion positions only; `micro_batch` rows at a time, gradients added up."""
    size = settings.pop("micro_batch") or settings["batch"]
    shape = Shape(**settings)
    model = build(shape).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE)
    rng = np.random.default_rng(0)
    tokens = torch.as_tensor(
        rng.integers(FIRST_ID, shape.vocab, (shape.batch, shape.prompt + shape.new))
    )
    given = torch.full((shape.batch, shape.new), -float(np.log(shape.vocab)))
    advantages = torch.as_tensor(rng.normal(size=(shape.batch, 1)), dtype=torch.float32)
    for _ in rounds:
        total = 0.0
        for rows in torch.arange(shape.batch).split(size):
            loss = grpo_loss(model, tokens[rows], given[rows], advantages[rows]) / given.numel()
            loss.backward()
            total += loss.item()
        torch.nn.utils.clip_grad_norm_(model.parameters(), MAX_NORM)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        rounds.note(loss=total)


def grpo_loss(model, tokens, given, advantages):
    """Clipped surrogate and k3 estimate of the KL to the reference, summed; `given` [R, T] is used
    for the old and the reference log-probs."""
    count = given.shape[1]
    out = model(
        input_ids=tokens, attention_mask=torch.ones_like(tokens), use_cache=False,
        logits_to_keep=count + 1,
    )  # fmt: skip
    logps = torch.log_softmax(out.logits[:, :-1], dim=-1)
    logps = logps.gather(-1, tokens[:, -count:, None]).squeeze(-1)
    gap = given - logps
    ratio = torch.exp(-gap)
    policy = -torch.minimum(ratio * advantages, ratio.clamp(1 - CLIP, 1 + CLIP) * advantages)
    return (policy + BETA * (torch.exp(gap) - gap - 1)).sum()
