"""LiteLLM's proxy with the settings of its own production guide, in front of the fixed-delay engine.

https://docs.litellm.ai/docs/proxy/prod: PRODUCTION mode, errors only in the log, no verbosity, a master key, one worker
per core. No database and no Redis: both would only slow it down, and what they buy (spend per key, limits) ours does.
"""

import os
import secrets
import socket
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from bench.processes import Server, running, wait_until

MODEL = "fixed"
_CONFIG = """\
model_list:
  - model_name: {model}
    litellm_params: {{model: openai/{model}, api_base: "{upstream}/v1", api_key: none}}
general_settings: {{master_key: {key}}}
litellm_settings: {{set_verbose: false, json_logs: true, request_timeout: 600, telemetry: false}}
"""
_PATIENCE = ("--timeout_worker_healthcheck", "300")
"""uvicorn kills a worker that is silent for 5 s. On a busy machine LiteLLM imports for longer, so no worker ever came
up: each was killed and started again, without an end."""


@contextmanager
def serving_litellm(programs: Path, folder: Path, upstream: str) -> Iterator[tuple[Server, str]]:
    """The running proxy and its master key."""
    key = "sk-" + secrets.token_hex(16)
    config = folder / "litellm.yaml"
    config.write_text(_CONFIG.format(model=MODEL, upstream=upstream, key=key))
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    workers = str(len(os.sched_getaffinity(0)))
    command = [programs / "litellm", "--host", "127.0.0.1", "--port", str(port), "--config", config]
    environment = {
        "LITELLM_MODE": "PRODUCTION",
        "LITELLM_LOG": "ERROR",
        "LITELLM_LOCAL_MODEL_COST_MAP": "True",  # its price list from the wheel, not from the network
        "PYTHONPATH": "",
    }
    log = folder / "litellm.log"
    with (
        log.open("wb") as output,
        running(
            [*command, "--num_workers", workers, *_PATIENCE], environment=environment, stdout=output, cwd=folder
        ) as process,
    ):

        def is_live() -> bool:
            assert process.poll() is None, f"litellm ended: {log.read_text()[-500:]}"
            try:
                with urllib.request.urlopen(f"{url}/health/liveliness", timeout=5) as answer:
                    return answer.status == 200
            except (urllib.error.URLError, OSError):
                return False

        wait_until(is_live, "litellm")
        yield Server(process, url), key
