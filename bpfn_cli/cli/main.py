# SPDX-License-Identifier: MIT
"""The `bpfn` command: its subcommands, and one line with an exit code for whatever goes wrong."""

from __future__ import annotations

import contextlib
import io
import os
import signal
import sys
from typing import Any, NoReturn, TextIO

import typer

from bpfn_cli.cli.console import say
from bpfn_cli.cli.data import data, prepare, subset, synth
from bpfn_cli.cli.groups import command_group
from bpfn_cli.cli.help import configuration, doctor
from bpfn_cli.cli.network import bench, profile, slim
from bpfn_cli.cli.results import evaluate, predict, report
from bpfn_cli.cli.training import compare, losses, runs, train
from bpfn_cli.errors import BpfnError, OutOfMemoryError, UsageError, means_out_of_memory, printable
from bpfn_cli.files import explain
from bpfn_cli.launch import is_started

DATA, NETWORK, TRAINING, RESULTS, HELP = "Data", "Network", "Training", "Results", "Help"

INTERRUPTED = 130

app = command_group(
    """Slim, distill and measure Bi-PointFlowNet, a point-cloud scene-flow network.

    \b
    Examples, in an empty folder:
      $ bpfn subset                              # render synthetic scenes and keep a fifth
      $ bpfn profile --variant weightnet48       # parameters and MACs of a small network
      $ bpfn distill --loss bihint               # train a teacher, then the small network
      $ bpfn report                              # tables of accuracy and cost
    """,
    name="bpfn",
)

app.command("synth", rich_help_panel=DATA)(synth.synth)
app.add_typer(prepare.app, name="prepare", rich_help_panel=DATA)
app.add_typer(data.app, name="data", rich_help_panel=DATA)
app.command("subset", rich_help_panel=DATA)(subset.subset)
app.command("slim", rich_help_panel=NETWORK)(slim.slim)
app.command("profile", rich_help_panel=NETWORK)(profile.profile)
app.command("bench", rich_help_panel=NETWORK)(bench.bench)
app.command("train", rich_help_panel=TRAINING)(train.train)
app.command("distill", rich_help_panel=TRAINING)(train.distill)
app.command("losses", rich_help_panel=TRAINING)(losses.losses)
app.command("compare", rich_help_panel=TRAINING)(compare.compare)
app.command("runs", rich_help_panel=TRAINING)(runs.runs)
app.command("resume", rich_help_panel=TRAINING)(runs.resume)
app.command("eval", rich_help_panel=RESULTS)(evaluate.evaluate)
app.command("predict", rich_help_panel=RESULTS)(predict.predict)
app.command("report", rich_help_panel=RESULTS)(report.report)
app.add_typer(configuration.app, name="config", rich_help_panel=HELP)
app.command("doctor", rich_help_panel=HELP)(doctor.doctor)


@app.callback(invoke_without_command=True)
def _options(
    version: bool = typer.Option(False, "--version", help="Print the version and exit.", metavar=""),
) -> None:
    if version:
        import bpfn_cli

        print(f"bpfn {bpfn_cli.__version__}")
        raise typer.Exit


def main() -> NoReturn:
    """Run the command line and exit with its code."""
    signal.signal(signal.SIGTERM, _terminate)
    _open_streams()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a terminal that has no dash shows a question mark
    if not os.environ.get("TERMINAL_WIDTH", "0").isdecimal():
        del os.environ["TERMINAL_WIDTH"]  # typer would fail on it
    code = run(sys.argv[1:])
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)  # the work is done: its exit code is the true one
    for stream in (sys.stdout, sys.stderr):
        _flush(stream)
    with contextlib.suppress(UsageError):
        if code and is_started():  # the others may be waiting for this process: its launcher will end them
            os._exit(code)
    sys.exit(code)


def run(arguments: list[str]) -> int:
    """Run the command line; return the exit code. Errors are one line on stderr."""
    try:
        code = app(arguments, prog_name="bpfn", standalone_mode=False)
        sys.stdout.flush()
        if code == INTERRUPTED:  # typer has swallowed the KeyboardInterrupt
            return _fail("interrupted", INTERRUPTED)
        return code if isinstance(code, int) else 0
    except BpfnError as error:
        if error.is_shared and os.environ.get("RANK", "0") != "0":
            return error.exit_code  # the main process tells it
        return _fail(str(error), error.exit_code)
    except (typer.TyperException, typer.BadParameter) as error:
        return _usage(error)
    except (KeyboardInterrupt, typer.Abort):
        return _fail("interrupted", INTERRUPTED)
    except BrokenPipeError:
        return 0  # the reader has gone: end quietly
    except SystemExit as error:
        if isinstance(error.__context__, BrokenPipeError):  # typer and rich make it one
            return 0
        raise
    except MemoryError:
        return _fail("out of memory; try a smaller --points or train.batch_size", OutOfMemoryError.exit_code)
    except OSError as error:
        return _fail(f"{printable(error.filename or 'disk')}: {explain(error)}", 5)
    except Exception as error:
        return _unexpected(error, arguments)


def _fail(message: str, code: int) -> int:
    say(f"bpfn: {' '.join(message.split())}")
    return code


def _open_streams() -> None:
    """Where the shell has closed them; else the next file that is opened would be taken for one of them."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)  # gets the lowest number, which is this
    sys.stdout = sys.stdout or os.fdopen(1, "w")
    sys.stderr = sys.stderr or os.fdopen(2, "w")


def _flush(stream: TextIO) -> None:
    """What cannot be written, since its reader has gone or the disk is full, is given up."""
    try:
        stream.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def _usage(error: Any) -> int:
    message = printable(error.format_message()).rstrip(".").replace(": Value error, ", ": ")
    context = getattr(error, "ctx", None)
    where = context.command_path if context is not None else "bpfn"
    if type(error).__name__ == "NoArgsIsHelpError":
        print(error.format_message())
        return 0
    return _fail(f"{message}; see `{where} --help`", 2)


def _unexpected(error: Exception, arguments: list[str]) -> int:
    if means_out_of_memory(str(error)):
        return _fail("out of memory; try a smaller --points or train.batch_size", OutOfMemoryError.exit_code)
    import tempfile
    import traceback
    from pathlib import Path

    text = f"bpfn {' '.join(arguments)}\n{traceback.format_exc()}"
    folder = Path.cwd() if os.access(Path.cwd(), os.W_OK) else Path(tempfile.gettempdir())
    path = folder / f"bpfn-error-{os.getpid()}.log"
    try:
        path.write_text(text, encoding="utf-8")
    except OSError:
        return _fail(f"internal error: {type(error).__name__}: {error}", 1)
    return _fail(f"internal error ({type(error).__name__}), a bug of ours; please report it with {path}", 1)


def _terminate(number: int, frame: Any) -> NoReturn:
    raise SystemExit(128 + number)
