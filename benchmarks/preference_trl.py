"""TRL's DPOTrainer on the task that benchmarks/preference.py wrote down; in an environment of its own, with trl."""

import json
import sys
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from peft import PeftModel
from training_trl import Clock  # type: ignore[import-not-found] # beside this file
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import DPOConfig, DPOTrainer


def main(spec: dict[str, Any]) -> None:
    base = AutoModelForCausalLM.from_pretrained(spec["base"], dtype=torch.bfloat16)
    model = PeftModel.from_pretrained(base, spec["adapter"], is_trainable=True)
    rates = spec["rates"]
    optimizer = torch.optim.AdamW([each for each in model.parameters() if each.requires_grad], 1.0, weight_decay=0.0)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: rates[min(step, len(rates) - 1)])
    clock = Clock()
    options = DPOConfig(
        output_dir=spec["output"],
        per_device_train_batch_size=spec["batch_size"],
        num_train_epochs=spec["n_epochs"],
        beta=spec["beta"],
        max_length=None,
        max_grad_norm=1.0,
        bf16=True,
        use_cpu=True,
        gradient_checkpointing=False,
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
    )
    trainer = DPOTrainer(
        model=model,
        args=options,
        train_dataset=Dataset.from_list(spec["rows"]),
        processing_class=AutoTokenizer.from_pretrained(spec["base"]),
        optimizers=(optimizer, scheduler),
        callbacks=[clock],
    )
    trainer.train()
    losses = [each["loss"] for each in trainer.state.log_history if "loss" in each]
    Path(spec["result"]).write_text(json.dumps({"seconds": clock.seconds, "losses": losses}))


if __name__ == "__main__":
    main(json.loads(Path(sys.argv[1]).read_text()))
