"""What transformers' own `generate` says, in float32, in this process."""

from functools import cache
from typing import Any

from shared.models.catalogue import resolve


@cache
def _model(name: str) -> tuple[Any, Any]:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    torch.set_num_threads(1)
    path = resolve(name).path
    return AutoTokenizer.from_pretrained(path), AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)


@cache
def greedy(name: str, prompt: str, tokens: int) -> str:
    """The text after `prompt`, of so many tokens at most."""
    tokenizer, model = _model(name)
    inputs = tokenizer(prompt, return_tensors="pt")
    made = model.generate(**inputs, max_new_tokens=tokens, do_sample=False)
    text: str = tokenizer.decode(made[0][inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    return text
