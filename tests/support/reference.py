"""What transformers' own `generate` says, in float32 and one prompt at a time, in a process of its own."""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

WITHIN_S = 300.0


def generated(model_path: Path, prompts: list[list[int]], new_tokens: int) -> list[list[int]]:
    """Greedy continuations of prompts of token ids."""
    with tempfile.TemporaryDirectory() as folder:
        job = Path(folder)
        (job / "prompts.json").write_text(json.dumps(prompts))
        command = (sys.executable, "-P", __file__, str(model_path), folder, str(new_tokens))
        subprocess.run(command, check=True, env={**os.environ, "HF_HUB_OFFLINE": "1"}, timeout=WITHIN_S)
        outputs: list[list[int]] = json.loads((job / "outputs.json").read_text())
    return outputs


def main(model_path: str, job: Path, new_tokens: int) -> None:
    import torch
    from transformers import AutoModelForCausalLM

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
