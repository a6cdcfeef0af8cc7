"""A model that nobody has trained yet: its tokenizer, learned from the data, and random weights."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoModelForCausalLM, GPT2Config, LlamaConfig, PreTrainedTokenizerFast

from app.fine_tuning.methods import Pretraining
from workers.fine_tuning.recipes import packing
from workers.fine_tuning.recipes.checkpoint import whole_folder
from workers.fine_tuning.recipes.rows import read_examples
from workers.model_import.convert import PLAIN_TEMPLATE

END = "<|endoftext|>"
# As in Llama and SwiGLU's paper (arXiv 2002.05202): three matrices of 8/3 instead of two of 4 widths.
MULTIPLE = 32


def train_tokenizer(file: Path, vocabulary: int, folder: Path) -> Path:
    """Byte-level BPE of at most `vocabulary` tokens; every text can be spelled. Made once per job."""
    if (folder / "tokenizer.json").exists():
        return folder
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=[AddedToken(END, special=True)],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts(file), trainer)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=END, eos_token=END, pad_token=END)
    fast.chat_template = PLAIN_TEMPLATE
    with whole_folder(folder, folder.with_name(folder.name + ".new")) as temporary:
        fast.save_pretrained(temporary)
        (temporary / "config.json").write_text(json.dumps({"eos_token_id": tokenizer.token_to_id(END)}))
    return folder


def texts(file: Path) -> Iterator[str]:
    return (given.text for given in read_examples(file))


def new_model(settings: Pretraining, tokenizer: Path, seed: int, dtype: torch.dtype) -> Any:
    """Weights drawn in fp32 from `seed`, then held in `dtype`. Attention packed, no dropout."""
    torch.manual_seed(seed)
    with (tokenizer / "config.json").open() as stream:
        end = json.load(stream)["eos_token_id"]
    vocabulary = Tokenizer.from_file(str(tokenizer / "tokenizer.json")).get_vocab_size()
    build = {"gpt2": gpt2, "llama": llama}[settings.architecture]
    config = build(settings, vocabulary, end if isinstance(end, int) else end[0])
    return AutoModelForCausalLM.from_config(config, attn_implementation=packing.NAME).to(dtype).eval()


def gpt2(settings: Pretraining, vocabulary: int, end: int) -> Any:
    return GPT2Config(
        vocab_size=vocabulary,
        n_layer=settings.layers,
        n_embd=settings.width,
        n_head=settings.heads,
        n_positions=settings.context,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        bos_token_id=end,
        eos_token_id=end,
        pad_token_id=end,
    )


def llama(settings: Pretraining, vocabulary: int, end: int) -> Any:
    return LlamaConfig(
        vocab_size=vocabulary,
        num_hidden_layers=settings.layers,
        hidden_size=settings.width,
        intermediate_size=-(-settings.width * 8 // 3 // MULTIPLE) * MULTIPLE,
        num_attention_heads=settings.heads,
        num_key_value_heads=settings.heads,
        max_position_embeddings=settings.context,
        tie_word_embeddings=True,
        bos_token_id=end,
        eos_token_id=end,
        pad_token_id=end,
    )
