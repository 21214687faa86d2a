"""TRL: the loss of its GRPOTrainer with AdamW, and whole iterations of the trainer."""

import os
import tempfile

os.environ["WANDB_DISABLED"] = "true"

import numpy as np
import torch
from datasets import Dataset
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, Qwen3ForCausalLM
from trl import GRPOConfig, GRPOTrainer

from benchmarks.peer_hf import build
from benchmarks.shapes import BETA, CLIP, FIRST_ID, LEARNING_RATE, MAX_NORM, Shape

ENDLESS = 10**6  # iterations; the benchmark ends the process earlier


def make_trainer(shape: Shape, reward, folder: str) -> GRPOTrainer:
    """A trainer whose texts are ids. With a KL term it loads the reference model from where the
    policy came from, so that has to be a folder."""
    build(shape).save_pretrained(f"{folder}/model")
    model = Qwen3ForCausalLM.from_pretrained(f"{folder}/model", dtype=torch.float32)
    words = Tokenizer(models.WordLevel({f"t{i}": i for i in range(shape.vocab)}, unk_token="t2"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    rng = np.random.default_rng(0)
    ids = rng.integers(FIRST_ID, shape.vocab, (64, shape.prompt))
    return GRPOTrainer(
        model=model,
        reward_funcs=reward,
        args=GRPOConfig(
            output_dir=f"{folder}/out",
            use_cpu=True,
            bf16=False,
            gradient_checkpointing=False,
            per_device_train_batch_size=shape.batch,
            num_generations=shape.group,
            max_completion_length=shape.new,
            beta=BETA,
            epsilon=CLIP,
            loss_type="bnpo",  # the mean over tokens
            learning_rate=LEARNING_RATE,
            max_grad_norm=MAX_NORM,
            temperature=1.0,
            top_p=1.0,
            top_k=0,
            max_steps=ENDLESS,
            report_to=[],
            disable_tqdm=True,
            save_strategy="no",
            logging_steps=1000,
        ),
        train_dataset=Dataset.from_dict({"prompt": [" ".join(f"t{i}" for i in r) for r in ids]}),
        processing_class=PreTrainedTokenizerFast(
            tokenizer_object=words, eos_token="t1", pad_token="t0"
        ),
    )


def step(settings: dict, rounds) -> None:
    shape = Shape(**settings)
    with tempfile.TemporaryDirectory() as folder:
        trainer = make_trainer(shape, lambda completions, **_: [0.0] * len(completions), folder)
    trainer.current_gradient_accumulation_steps = 1
    model = trainer.model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE)
    given = torch.full((shape.batch, shape.new), -float(np.log(shape.vocab)))
    inputs = {
        "prompt_ids": torch.randint(FIRST_ID, shape.vocab, (shape.batch, shape.prompt)),
        "prompt_mask": torch.ones(shape.batch, shape.prompt, dtype=torch.long),
        "completion_ids": torch.randint(FIRST_ID, shape.vocab, (shape.batch, shape.new)),
        "completion_mask": torch.ones(shape.batch, shape.new, dtype=torch.long),
        "advantages": torch.randn(shape.batch),
        "old_per_token_logps": given,
        "ref_per_token_logps": given,
        "num_items_in_batch": torch.tensor(given.numel()),
    }
    for _ in rounds:
        loss = trainer._compute_loss(model, inputs)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), MAX_NORM)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        rounds.note(loss=loss.item())


def iteration(settings: dict, rounds) -> None:
    """One round is a whole iteration of the trainer: from one call of the reward to the next."""
    shape = Shape(**settings)

    def reward(completion_ids, **_):
        rounds.note(tokens=sum(map(len, completion_ids)))
        rounds.turn()
        return [len(set(ids)) / shape.new for ids in completion_ids]

    with tempfile.TemporaryDirectory() as folder:
        trainer = make_trainer(shape, reward, folder)
        trainer.train()
