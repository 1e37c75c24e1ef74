# SPDX-License-Identifier: MIT
"""The `bpfn` command: its subcommands, and one line with an exit code for whatever goes wrong."""

import contextlib
import io
import os
import re
import signal
import sys
import warnings
from pathlib import Path
from typing import Any, NoReturn, TextIO

import typer

from bpfn_cli.cli.console import echo, say
from bpfn_cli.cli.data import data, prepare, subset, synth
from bpfn_cli.cli.groups import command_group
from bpfn_cli.cli.help import configuration, doctor
from bpfn_cli.cli.network import bench, export, profile, search, slim, weights
from bpfn_cli.cli.results import evaluate, predict, report, view
from bpfn_cli.cli.training import compare, losses, runs, train
from bpfn_cli.errors import BpfnError, BpfnWarning, OutOfMemoryError, UsageError, means_out_of_memory, printable
from bpfn_cli.files import explain
from bpfn_cli.launch import is_started

COMMANDS: dict[str, dict[str, Any]] = {
    "Data": {"synth": synth.synth, "prepare": prepare.app, "data": data.app, "subset": subset.subset},
    "Network": {
        "weights": weights.weights,
        "slim": slim.slim,
        "search": search.search,
        "profile": profile.profile,
        "bench": bench.bench,
        "export": export.export,
    },
    "Training": {
        "train": train.train,
        "distill": train.distill,
        "losses": losses.losses,
        "compare": compare.compare,
        "runs": runs.runs,
        "resume": runs.resume,
    },
    "Results": {
        "eval": evaluate.evaluate,
        "predict": predict.predict,
        "view": view.view,
        "report": report.report,
    },
    "Help": {"config": configuration.app, "doctor": doctor.doctor},
}  # by panel of the help

INTERRUPTED = 130
_PYTHON_WARNING = warnings.showwarning

app = command_group(
    """Slim, distill and measure Bi-PointFlowNet, a point-cloud scene-flow network.

    \b
    Examples, in an empty folder:
      $ bpfn subset                              # render synthetic scenes and keep a fifth
      $ bpfn profile --variant weightnet48       # parameters and MACs of a small network
      $ bpfn distill --loss bihint               # distill the trained `baseline` into it
      $ bpfn report                              # tables of accuracy and cost
    """,
    name="bpfn",
)
for _panel, _commands in COMMANDS.items():
    for _name, _command in _commands.items():
        if isinstance(_command, typer.Typer):
            app.add_typer(_command, name=_name, rich_help_panel=_panel)
        else:
            app.command(_name, rich_help_panel=_panel)(_command)


@app.callback(invoke_without_command=True)
def _options(
    version: bool = typer.Option(False, "--version", help="Print the version and exit.", metavar=""),
) -> None:
    if version:
        import bpfn_cli

        echo(f"bpfn {bpfn_cli.__version__}")
        raise typer.Exit


def main() -> NoReturn:
    """Run the command line and exit with its code."""
    signal.signal(signal.SIGTERM, _terminate)
    _open_streams()
    warnings.showwarning = _show_warning
    if not os.environ.get("TERMINAL_WIDTH", "0").isdecimal():
        del os.environ["TERMINAL_WIDTH"]  # typer would fail on it
    code = run(sys.argv[1:])
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)  # the work is done, and its exit code is final
    for stream in (sys.stdout, sys.stderr):
        _flush(stream)
    with contextlib.suppress(UsageError):
        if code and is_started():  # other processes may be waiting for this one; the launcher will end them
            os._exit(code)
    sys.exit(code)


def run(arguments: list[str]) -> int:
    """Run the command line; return the exit code. Errors are one line on stderr."""
    try:
        Path.cwd()  # libraries end the process with a message of their own, or worse
    except OSError:
        return _fail("the current folder was deleted; change to another one", 5)
    try:
        code = app(arguments, prog_name="bpfn", standalone_mode=False)
        sys.stdout.flush()
    except SystemExit as error:
        if not isinstance(error.__context__, BrokenPipeError):  # typer and rich make a SystemExit of it
            raise
        return 0
    except (Exception, KeyboardInterrupt) as error:
        return _report(error, arguments)
    if code == INTERRUPTED:  # typer has caught the KeyboardInterrupt
        return _fail("interrupted", INTERRUPTED)
    return code if isinstance(code, int) else 0


def _report(error: BaseException, arguments: list[str]) -> int:
    """Print what went wrong; return the exit code."""
    if isinstance(error, BpfnError):
        if error.is_shared and os.environ.get("RANK", "0") != "0":
            return error.exit_code  # the main process reports it
        return _fail(str(error), error.exit_code)
    if isinstance(error, typer.TyperException | typer.BadParameter):
        return _usage(error, arguments)
    if isinstance(error, KeyboardInterrupt | typer.Abort):
        return _fail("interrupted", INTERRUPTED)
    if isinstance(error, BrokenPipeError):
        return 0  # nobody reads stdout any more
    if isinstance(error, MemoryError) or means_out_of_memory(str(error)):
        return _fail("out of memory; try a smaller --points or train.batch_size", OutOfMemoryError.exit_code)
    if isinstance(error, OSError) and error.errno is not None:
        return _fail(f"{printable(error.filename or 'disk')}: {explain(error)}", 5)
    return _unexpected(error, arguments)


def _show_warning(message: Warning | str, category: type[Warning], *place: Any, **more: Any) -> None:
    """Our own warnings are notes in one line; others come from libraries, and are shown as Python shows them."""
    if issubclass(category, BpfnWarning):
        say(f"note: {message}")
    else:
        _PYTHON_WARNING(message, category, *place, **more)


def _fail(message: str, code: int) -> int:
    say(f"bpfn: {' '.join(message.split())}")
    return code


def _open_streams() -> None:
    """Replace standard streams that the shell has closed, or the next file opened would be taken for one of them."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)  # gets the lowest free number: this one
    sys.stdout = sys.stdout or os.fdopen(1, "w")
    sys.stderr = sys.stderr or os.fdopen(2, "w")
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a terminal without a character shows a question mark


def _flush(stream: TextIO) -> None:
    """Write what is left, or drop it if nobody reads it or the disk is full."""
    try:
        stream.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def _usage(error: Any, arguments: list[str]) -> int:
    if type(error).__name__ == "NoArgsIsHelpError":
        echo(error.format_message())
        return 0
    message = printable(error.format_message()).rstrip(".").replace(": Value error, ", ": ")
    message = message.replace(
        "Input should be a valid integer, unable to parse string as an integer", "use a whole number"
    )
    message = re.sub(r"Input should be (greater|less) than", r"use a number \1 than", message)
    message = message.replace("requires an argument", "needs a value")
    context = getattr(error, "ctx", None)
    command = [word for word in arguments[:1] if any(word in commands for commands in COMMANDS.values())]
    where = context.command_path if context is not None else " ".join(["bpfn", *command])
    return _fail(f"{message}; see `{where} --help`", 2)


def _unexpected(error: BaseException, arguments: list[str]) -> int:
    """Write the traceback to a file, in the current folder if possible."""
    import tempfile
    import traceback

    from bpfn_cli.without_torch import torch_problem

    if problem := torch_problem():
        return _fail(f"torch does not work here ({problem}); `bpfn doctor` shows what is installed", 1)
    trace = "".join(traceback.format_exception(error))
    folder = Path.cwd() if os.access(Path.cwd(), os.W_OK) else Path(tempfile.gettempdir())
    try:  # a new file of an unpredictable name, which only this user can read
        descriptor, path = tempfile.mkstemp(suffix=".log", prefix="bpfn-error-", dir=folder)
        with os.fdopen(descriptor, "w", encoding="utf-8", errors="backslashreplace") as stream:
            stream.write(f"bpfn {' '.join(arguments)}\n{trace}")
    except OSError:
        return _fail(f"internal error: {type(error).__name__}: {error}", 1)
    return _fail(f"internal error ({type(error).__name__}), a bug in bpfn; please report it with {path}", 1)


def _terminate(number: int, frame: Any) -> NoReturn:
    raise SystemExit(128 + number)
