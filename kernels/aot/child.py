"""Work in a forked child: compilers for chips that are not here abort the process on some inputs."""

from __future__ import annotations

import json
import os
import re
import resource
import tempfile
import warnings
from collections.abc import Callable
from typing import Any


def call(work: Callable[[], Any]) -> tuple[Any, str | None]:
    """(what work() returned, through JSON, None), or (None, what it raised or why the child died).

    The process must not have run anything under JAX before: a fork does not take its threads along.
    """
    read, write = os.pipe()
    with tempfile.TemporaryFile() as errors:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)  # jax warns of forks; there is no backend yet
            child = os.fork()
        if child == 0:
            os.dup2(errors.fileno(), 2)
            resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
            try:
                answer = work(), None
            except Exception as error:
                answer = None, _short(str(error))
            with os.fdopen(write, "w") as pipe:
                json.dump(answer, pipe)
            os._exit(0)
        os.close(write)
        with os.fdopen(read) as pipe:
            text = pipe.read()
        os.waitpid(child, 0)
        if text:
            result, problem = json.loads(text)
            return result, problem
        errors.seek(0)
        said = errors.read().decode(errors="replace")
        fatal = re.search(r"^(?:F\d{4}.*?\]|LLVM ERROR:) (.*)$", said, re.MULTILINE)
        return None, f"aborted: {_short(fatal[1] if fatal else said[-300:])}"


def _short(text: str) -> str:
    return " ".join(text.split())[:160]
