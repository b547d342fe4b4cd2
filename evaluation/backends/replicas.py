"""Further engines of vLLM, each in its own process with its own GPUs."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Mapping, Sequence
from multiprocessing.connection import Connection
from typing import TYPE_CHECKING, Any

from common.errors import UserError
from common.warm import die_with_parent
from evaluation.backends.vllm_setup import prepare

if TYPE_CHECKING:
    from vllm import RequestOutput, SamplingParams, TokensPrompt


def devices_of(number: int, width: int, visible: Sequence[str]) -> str:
    """Name an engine's `width` GPUs, as CUDA_VISIBLE_DEVICES has them."""
    return ",".join(visible[number * width : (number + 1) * width])


def visible_gpus(count: int) -> list[str]:
    """List the GPUs that this process may use, of the `count` that torch finds."""
    given = os.environ.get("CUDA_VISIBLE_DEVICES")
    if given is None:
        return [str(number) for number in range(count)]
    return [part.strip() for part in given.split(",") if part.strip()]


class Replica:
    """An engine in another process, which answers its share of every list of prompts.

    Args:
        arguments: Of vLLM's `LLM`.
        devices: Its GPUs, as CUDA_VISIBLE_DEVICES names them; empty for vLLM's CPU build.
    """

    def __init__(self, arguments: Mapping[str, Any], devices: str) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, other = context.Pipe()
        given = (other, dict(arguments), devices, os.getpid())
        self._process = context.Process(target=_work, args=given, name="vLLM's replica")
        self._process.start()
        other.close()

    def begin(self, order: str, *given: Any) -> None:
        """Send an order: ``generate``, ``reload`` or ``replace``, with what it takes."""
        try:
            self._pipe.send((order, given))
        except OSError:
            raise self._died() from None

    def finish(self) -> list[RequestOutput]:
        """Wait for the order's end and return its answers; nothing but of ``generate``.

        Raises:
            UserError: The engine failed or its process ended.
        """
        try:
            problem, answers = self._pipe.recv()
        except (EOFError, OSError):
            raise self._died() from None
        if problem:
            raise UserError(f"a further engine (data parallel) failed: {problem}")
        return answers

    def _died(self) -> UserError:
        return UserError(
            "a further engine (data parallel) ended early; its messages above say why, often for "
            "lack of memory: lower evaluation.data_parallel or free its GPU"
        )

    def close(self) -> None:
        """End the process."""
        self._pipe.close()
        self._process.join(30)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()


def share(
    replicas: Sequence[Replica],
    prompts: Sequence[TokensPrompt],
    settings: SamplingParams | Sequence[SamplingParams],
) -> list[TokensPrompt]:
    """Send each replica every n-th prompt and return the rest, which this process answers."""
    n = 1 + len(replicas)
    for number, replica in enumerate(replicas, 1):
        each = settings[number::n] if isinstance(settings, list) else settings
        replica.begin("generate", prompts[number::n], each)
    return list(prompts[::n])


def _work(pipe: Connection, arguments: dict[str, Any], devices: str, parent: int) -> None:
    """Serve an engine until the pipe's other end is closed."""
    die_with_parent(parent)
    if devices:
        os.environ["CUDA_VISIBLE_DEVICES"] = devices
    prepare()
    from vllm import LLM

    engine: Any = None
    try:
        while True:
            problem = ""
            answers: list[RequestOutput] = []
            order, given = pipe.recv()
            try:
                if order == "generate":
                    answers = engine.generate(*given, use_tqdm=False) if given[0] else []
                elif order == "reload":
                    engine.collective_rpc("reload_weights", kwargs={"weights_path": given[0]})
                    engine.reset_prefix_cache()
                else:
                    if engine is not None:
                        engine.llm_engine.engine_core.shutdown()
                    arguments["model"] = given[0]
                    engine = LLM(**arguments)
            except Exception as error:  # the first process says it and decides what follows
                problem = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
            pipe.send((problem, answers))
    except EOFError:
        if engine is not None:
            engine.llm_engine.engine_core.shutdown()
