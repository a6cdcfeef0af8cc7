"""TRL's SFTTrainer on the task that benchmarks/training.py wrote down; in an environment of its own, with trl."""

import json
import sys
import time
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
from trl import SFTConfig, SFTTrainer


class Clock(TrainerCallback):  # type: ignore[misc]
    def on_train_begin(self, *_: Any, **__: Any) -> None:
        self.begun = time.perf_counter()

    def on_train_end(self, *_: Any, **__: Any) -> None:
        self.seconds = time.perf_counter() - self.begun


def main(spec: dict[str, Any]) -> None:
    base = AutoModelForCausalLM.from_pretrained(spec["base"], dtype=torch.bfloat16)
    model = PeftModel.from_pretrained(base, spec["adapter"], is_trainable=True)
    rates = spec["rates"]
    optimizer = torch.optim.AdamW([each for each in model.parameters() if each.requires_grad], 1.0, weight_decay=0.0)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: rates[min(step, len(rates) - 1)])
    clock = Clock()
    options = SFTConfig(
        output_dir=spec["output"],
        per_device_train_batch_size=spec["batch_size"],
        num_train_epochs=1,
        train_sampling_strategy="sequential",
        shuffle_dataset=False,
        max_grad_norm=1.0,
        bf16=True,
        use_cpu=not torch.cuda.is_available(),
        gradient_checkpointing=spec["checkpointing"],
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
    )
    trainer = SFTTrainer(
        model=model,
        args=options,
        train_dataset=Dataset.from_list(spec["rows"]),
        processing_class=AutoTokenizer.from_pretrained(spec["base"]),
        optimizers=(optimizer, scheduler),
        callbacks=[clock],
    )
    trainer.train()
    losses = [each["loss"] for each in trainer.state.log_history if "loss" in each]
    peak = torch.cuda.max_memory_allocated() if torch.cuda.is_available() else 0
    Path(spec["result"]).write_text(json.dumps({"seconds": clock.seconds, "peak": peak, "losses": losses}))


if __name__ == "__main__":
    main(json.loads(Path(sys.argv[1]).read_text()))
