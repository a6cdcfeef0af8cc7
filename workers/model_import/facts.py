"""What an import finds out about a base; imports nothing heavy."""

from typing import Any

from pydantic import BaseModel

# Decoder-only models with ordinary per-layer K/V: model_type → architecture.
SUPPORTED = {
    "llama": "LlamaForCausalLM",
    "mistral": "MistralForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
    "gemma3_text": "Gemma3ForCausalLM",
    "gpt2": "GPT2LMHeadModel",
}


class BaseFacts(BaseModel):
    """`shape`: {layers, hidden_size, vocabulary, linears: {full name: [out, in]}}."""

    architecture: str
    parameters: int
    context_length: int
    license: str
    shape: dict[str, Any]
