"""python -m services.prompt_worker: the worker of shared.worker, at home in the prompt pool unless told otherwise."""

import sys
from functools import partial

from shared.runtime.launch import launch
from shared.wire.terms import Role
from shared.worker.start import start

if __name__ == "__main__":
    sys.exit(launch("prompt_worker", partial(start, "prompt_worker", Role.PROMPT)))
