"""torch.compile of networks, in place: names of weights, saved files and averages stay what they are.

"regional" compiles the repeated blocks of trunk and head once for each kind of block, by diffusers' `compile_repeated_blocks`. "full"
compiles what training and sampling call: passes of trunk and head, and the training forward.

Not accelerate's TorchDynamoPlugin: `accelerator.prepare` would compile a copy of the objective with tokenizer and augmentation in it; the
blocks of a cascade, which two generators share, and calls other than `forward` would go around the copy.
"""

import functools
import importlib.util
import os
import shutil
import sys
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, Literal, get_args

from mgen.utils.errors import MgenError, check_choice, first_line, shown

if TYPE_CHECKING:
    import torch

    from mgen.utils.modeling import Model

Compile = Literal["off", "regional", "full"]
MODES: tuple[str, ...] = get_args(Compile)

# Compiled forms of a function that torch keeps before it goes on uncompiled. Its own 8 is too few: a block is called with and without
# gradients, for all tokens and for some, with and without kept keys and values, and each of these for fixed and for free sizes.
FORMS = 64


def compile_network(network: "Model", mode: str, *, device: "torch.device | None" = None, **options: Any) -> None:
    """Compile a network in place; the first call with shapes of a new kind then takes seconds, later ones should be faster.

    Args:
        network: with repeated blocks, such as a generator. mode: "regional", "full", or "off", which does nothing.
        device: where it will compute; None: where it is.
        options: of torch.compile, such as dynamic=True.

    Raises:
        MgenError: unknown mode or backend, options that torch.compile does not take, or this machine can't compile.
    """
    check_choice("compile", mode, MODES)
    if mode == "off":
        return
    if mode == "regional" and not getattr(network, "_repeated_blocks", None):
        raise MgenError(f"compile is {mode!r}, but {type(network).__name__} has no repeated blocks: leave compile off")
    import torch._dynamo

    _check_backend(options.get("backend", "inductor"))
    if options.get("backend", "inductor") == "inductor":
        check_compiler((device or network.device).type)
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, FORMS)
    compiled = network.compile if mode == "full" else network.compile_repeated_blocks
    try:
        compiled(**options)
    except (AssertionError, RuntimeError, TypeError, ValueError) as error:
        raise MgenError(
            f"torch.compile does not take the options {shown(options)} ({first_line(error)}): leave them out, or see its documentation"
        ) from error


def _check_backend(backend: object) -> None:
    """Raise MgenError unless torch knows the backend by this name, or it is a function."""
    import torch._dynamo

    if isinstance(backend, str):
        check_choice("backend of torch.compile", backend, torch._dynamo.list_backends(exclude_tags=()))
    elif not callable(backend):
        raise MgenError(f"backend is {shown(backend)}: expected the name of one of torch.compile, or a function")


def is_compiled(network: "torch.nn.Module") -> bool:
    """Whether a part of the network was compiled in place."""
    compiled = any(module._compiled_call_impl is not None for module in network.modules())
    return compiled or any(
        hasattr(vars(module).get(name), "_torchdynamo_orig_callable")
        for module in network.modules()
        for name in getattr(module, "passes", ())
    )


def uncompiled() -> "AbstractContextManager[object]":
    """A context in which compiled networks run as if they were not: for few calls with shapes of their own."""
    import torch

    return torch.compiler.set_stance("force_eager")


@functools.cache
def check_compiler(device: str) -> None:
    """Raise MgenError unless torch.compile works on this kind of device, such as "cpu": a function of one line is compiled and run."""
    if (missing := _missing(device)) is not None:
        raise MgenError(f"compile on {device} needs {missing}; or leave compile off")
    import torch

    try:
        torch.compile(lambda x: x.exp() + 1, dynamic=False)(torch.zeros(8, device=device))
    except Exception as error:  # whatever a broken tool chain makes of it
        raise MgenError(
            f"this machine cannot compile for {device} ({first_line(error, 300)}): leave compile off, or repair the compiler that "
            "torch.compile calls"
        ) from error


def _missing(device: str) -> str | None:
    """The tool that is not there, and how to get it; None: all are."""
    if device == "cuda":  # ROCm too
        if importlib.util.find_spec("triton") is None:
            return "Triton: pip install triton"
        if not any(map(_on_path, [os.environ.get("CC") or "gcc", "clang", "cc"])):
            return "a C compiler on the PATH, which Triton calls: install gcc or clang, or set CC"
    elif device == "cpu":
        usual = {"win32": "cl", "darwin": "clang++"}.get(sys.platform, "g++")
        name = os.environ.get("CXX") or usual
        if not _on_path(name):
            return f"a C++ compiler, and {name} is not on the PATH: install it (Debian: apt install g++), or set CXX to another"
    return None


def _on_path(command: str) -> bool:
    """Whether the program of a command such as "ccache gcc" is there; its name may hold spaces."""
    return any(shutil.which(name) for name in (command, *command.split()[:1]))


def is_compiler_error(error: BaseException) -> bool:
    """Whether torch.compile raised this, in the middle of a run."""
    return any(cls.__module__.startswith(("torch._dynamo.", "torch._inductor.")) for cls in type(error).__mro__)
