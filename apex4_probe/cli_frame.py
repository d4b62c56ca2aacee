"""What every verb of the command line shares: options, consoles, and how a failure becomes a sentence and a code.

Nothing heavy is imported at the top, so that ``--help`` answers at once. Exit codes: 0 answer given, 1 the check
failed, 2 bad input or environment, 130 interrupted.
"""

from __future__ import annotations

import functools
import os
import shlex
import sys
import traceback
from collections.abc import Callable
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn, TypeVar

import typer

from apex4_probe.errors import ApexError

if TYPE_CHECKING:
    from rich.console import Console

    from apex4_probe.emit import Display

NAME = "apex4-probe"
CHECK_FAILED, BAD_INPUT, INTERRUPTED = 1, 2, 130

Verb = TypeVar("Verb", bound=Callable[..., None])


class FormatChoice(str, Enum):
    auto = "auto"
    fp16 = "fp16"
    fp8 = "fp8"
    w4a16 = "w4a16"
    w4a8 = "w4a8"
    w4a4 = "w4a4"


# What run and predict ask alike.
ModelOption = Annotated[
    str, typer.Option(help="A preset such as llama-3-8b, or the path of a Hugging Face config.json.")
]
WorkloadOption = Annotated[str, typer.Option(help="What the GPU will be asked: phase:M[*weight], joined by commas.")]
FormatOption = Annotated[
    FormatChoice, typer.Option(help="auto chooses among all formats; a name asks which granularity within it.")
]
QualityOption = Annotated[
    float, typer.Option(help="Largest expected loss, in nats per token, that --format auto accepts.")
]
SpeedupOption = Annotated[float, typer.Option(help="Smallest speed-up over FP16 that --format w4a4 accepts.")]
ShardsOption = Annotated[int, typer.Option(help="Tensor-parallel shards to plan for.")]
ForceOption = Annotated[bool, typer.Option("--force", help="Let a predicted profile replace a measured one.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print the profiles as JSON on stdout.")]
QuietOption = Annotated[bool, typer.Option("--quiet", "-q", help="Print nothing but errors.")]


def one_sentence(verb: Verb) -> Verb:
    """Turn every failure into one sentence on stderr and an exit code; APEX4_PROBE_DEBUG=1 shows the traceback too."""

    @functools.wraps(verb)
    def guarded(*args: Any, **options: Any) -> None:
        try:
            verb(*args, **options)
            sys.stdout.flush()
        except ApexError as error:
            _fail(str(error), BAD_INPUT)
        except KeyboardInterrupt:
            _fail("interrupted; no partial file was left", INTERRUPTED)
        except BrokenPipeError:
            # The reader (head, less) has seen enough. The interpreter's own flush at exit must not fail again.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        except OSError as error:
            _fail(f"{error.filename or 'the system'}: {error.strerror or error}", BAD_INPUT)
        except (typer.Exit, typer.Abort):
            raise
        except Exception as error:
            what = " ".join(str(error).split())[:300]
            _fail(f"internal error: {type(error).__name__}: {what} (APEX4_PROBE_DEBUG=1 shows where)", BAD_INPUT)

    return guarded  # type: ignore[return-value]  # same signature, by functools.wraps


def _fail(sentence: str, code: int) -> NoReturn:
    if os.environ.get("APEX4_PROBE_DEBUG") == "1":
        traceback.print_exc()
    print(f"{NAME}: {sentence}", file=sys.stderr)
    raise typer.Exit(code)


def console(quiet: bool = False, stderr: bool = False) -> Console:
    from rich.console import Console

    class PipeConsole(Console):
        def on_broken_pipe(self) -> None:
            """Rich would exit with 1, which here means that a check failed."""
            raise BrokenPipeError

    return PipeConsole(quiet=quiet, stderr=stderr, highlight=False)


def display(quiet: bool, json: bool) -> Display:
    from apex4_probe.emit import Display

    return Display(
        figures=console(quiet=quiet or json),
        remarks=console(quiet=quiet, stderr=json),
        progress=console(quiet=quiet, stderr=True),
    )


def profile_path(path: Path) -> Path:
    return path / "profile.yaml" if path.is_dir() else path


def command_line() -> str:
    """As typed, so that the profile says how to get it again; the program's path is nobody's business."""
    return shlex.join([NAME, *sys.argv[1:]])
