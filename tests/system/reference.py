"""What transformers' own `generate` says: python reference.py MODEL_PATH JOB_DIRECTORY NEW_TOKENS."""

import json
import sys
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM


def main(model_path: str, job: Path, new_tokens: int) -> None:
    torch.set_num_threads(2)
    model = AutoModelForCausalLM.from_pretrained(model_path, dtype=torch.float32)
    outputs = []
    for prompt in json.loads((job / "prompts.json").read_text()):
        ids = torch.tensor([prompt])
        with torch.inference_mode():
            whole = model.generate(
                ids, attention_mask=torch.ones_like(ids), max_new_tokens=new_tokens, do_sample=False, pad_token_id=2
            )
        outputs.append(whole[0, len(prompt) :].tolist())
    (job / "outputs.json").write_text(json.dumps(outputs))


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]))
