"""transformers and peft on torch: a GRPO step of a GGUF file, by autograd and AdamW."""

import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

from benchmarks.peer_hf import grpo_loss
from benchmarks.shapes import LEARNING_RATE, MAX_NORM
from benchmarks.train_peers import ALPHA, RANK, Step, peak
from memalpha.hub import find_folder


def step(settings: dict, rounds) -> None:
    step = Step(**settings)
    file = find_folder(step.model)
    model = AutoModelForCausalLM.from_pretrained(
        file.parent, gguf_file=file.name, dtype=torch.float32, attn_implementation="sdpa"
    ).train()
    if step.adapters:
        how = LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules="all-linear", lora_dropout=0.0)
        model = get_peft_model(model, how)
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=LEARNING_RATE, weight_decay=0.0)
    tokens, given, advantages = map(torch.as_tensor, step.draw(model.config.vocab_size))
    tokens, advantages = tokens.long(), advantages[:, None]
    for _ in rounds:
        total = 0.0
        for rows in torch.arange(step.rows).split(step.micro_batch):
            loss = grpo_loss(model, tokens[rows], given[rows], advantages[rows]) / given.numel()
            loss.backward()
            total += loss.item()
        torch.nn.utils.clip_grad_norm_(trained, MAX_NORM)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        rounds.note(loss=total, memory=peak())
