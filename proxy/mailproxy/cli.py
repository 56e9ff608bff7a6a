# SPDX-License-Identifier: Apache-2.0
"""The command ``mailproxy``: its arguments and exit codes.

A subcommand imports what it needs when it runs, so that ``--help`` and
``check`` do not load libraries that only ``run`` uses.
"""

from __future__ import annotations

import argparse
import signal
import socket
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Literal, NoReturn

from mailproxy_config.errors import Problem
from mailproxy_config.model import LogLevel
from mailproxy_config.standard_streams import (
    ExitCode,
    OutputError,
    discard_output,
    open_standard_streams,
    write_output,
)

_FORMATS = ("json", "text")
_MAX_WORKERS = 1024
_FILE_HELP = "a MailProxy manifest, a rendered configuration, or an nginx.conf"


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command.

    Args:
        argv: Its arguments; ``None`` for the process's own.

    Returns:
        The exit code.
    """
    open_standard_streams()
    options = _parser().parse_args(argv)
    options.file = options.file or options.option
    try:
        code: int = options.command(options)
        sys.stdout.flush()
    except BrokenPipeError:  # the reader of standard output has closed it
        discard_output()
        return ExitCode.INVALID_INPUT
    except OutputError as error:
        sys.stderr.write(f"mailproxy: {error}\n")
        return ExitCode.INVALID_INPUT
    return code


def _run(options: argparse.Namespace) -> int:
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)  # a log rotation must not end a process that is starting
    for signum in (signal.SIGTERM, signal.SIGINT):  # until the supervisor handles them
        signal.signal(signum, _leave)
    from mailproxy.supervisor.options import RunOptions  # noqa: PLC0415
    from mailproxy.supervisor.supervisor import run  # noqa: PLC0415
    from mailproxy.telemetry.log_writer import LogFormat  # noqa: PLC0415

    address, port = options.admin
    run_options = RunOptions(
        file=options.file,
        workers=options.workers,
        admin_address=address,
        admin_port=port,
        log_format=LogFormat(options.log_format or default_log_format()),
        log_level=LogLevel(options.log_level) if options.log_level else None,
    )
    return run(run_options)


def default_log_format() -> str:
    """Return the default of ``--log-format``: text on a terminal, JSON otherwise."""
    return "text" if sys.stderr is not None and sys.stderr.isatty() else "json"


def _leave(*_: object) -> NoReturn:
    raise SystemExit(ExitCode.OK)


def workers(text: str) -> int | Literal["auto"]:
    """Parse ``--workers``.

    Raises:
        argparse.ArgumentTypeError: It is neither ``auto`` nor a number from 1 on.
    """
    if text == "auto":
        return "auto"
    if text.isascii() and text.isdigit() and 1 <= int(text) <= _MAX_WORKERS:
        return int(text)
    raise argparse.ArgumentTypeError(f"{text!r} is neither auto nor a number from 1 to {_MAX_WORKERS}")


def admin(text: str) -> tuple[str, int]:
    """Parse ``--admin``: an address, in brackets where it is IPv6, and a port (0 for any).

    Raises:
        argparse.ArgumentTypeError: It is not ``ADDRESS:PORT``.
    """
    address, _, port = text.rpartition(":")
    bare = address.removeprefix("[").removesuffix("]")
    is_bracketed = address == f"[{bare}]"
    if not bare or (":" in bare) != is_bracketed or not (port.isascii() and port.isdigit()):
        raise argparse.ArgumentTypeError(f"{text!r} is not ADDRESS:PORT, such as 127.0.0.1:9113 or [::]:9113")
    if int(port) > 65535:
        raise argparse.ArgumentTypeError(f"port {port} is out of range")
    return bare, int(port)


def _check(options: argparse.Namespace) -> int:
    from mailproxy.supervisor.config_check import check_config, summary  # noqa: PLC0415
    from mailproxy_config.errors import ConfigError  # noqa: PLC0415
    from mailproxy_config.load import is_mounted  # noqa: PLC0415

    source = _source(options.file)
    try:
        result = check_config(_read(options.file), source=source, hostname=socket.gethostname())
    except ConfigError as error:
        _print_problems(error.problems)
        return ExitCode.INVALID_INPUT
    _print_problems(result.notices, "note: ")
    # Files of a Secret exist only in a pod, so a missing one is not an error here.
    _print_problems(result.absent, "note: ")
    _print_problems([problem for problem in result.certificates if is_mounted(problem)], "note: ")
    problems = [*result.problems, *(one for one in result.certificates if not is_mounted(one))]
    _print_problems(problems)
    if problems:
        return ExitCode.INVALID_INPUT
    write_output(summary(result, source or "standard input") + "\n")
    return ExitCode.OK


def _convert(options: argparse.Namespace) -> int:
    from mailproxy_config.decode import decode_text  # noqa: PLC0415
    from mailproxy_config.errors import ConfigError  # noqa: PLC0415
    from mailproxy_config.manifest_yaml import to_manifest_yaml  # noqa: PLC0415
    from mailproxy_config.nginx.convert import parse_nginx  # noqa: PLC0415

    source = _source(options.file)
    names = {"name": options.name, "namespace": options.namespace}
    try:
        text = decode_text(_read(options.file), source)
        manifest = parse_nginx(text, source=source, **names, only_to_print=True)
    except ConfigError as error:
        _print_problems(error.problems)
        return ExitCode.INVALID_INPUT
    _print_problems(manifest.notices)
    write_output(to_manifest_yaml(manifest))
    return ExitCode.OK


def _read(file: Path) -> bytes:
    """Read the configuration, once; ``-`` is standard input, and a pipe is accepted.

    Raises:
        ConfigError: It cannot be read.
    """
    from mailproxy.supervisor.config_check import read_config  # noqa: PLC0415
    from mailproxy_config.decode import MAX_FILE_BYTES  # noqa: PLC0415

    if str(file) == "-":
        return sys.stdin.buffer.read(MAX_FILE_BYTES + 1)
    return read_config(file, once=True)


def _source(file: Path) -> str:
    return "" if str(file) == "-" else str(file)


def _print_problems(problems: Iterable[Problem], prefix: str = "") -> None:
    from mailproxy.supervisor.config_check import format_problem  # noqa: PLC0415

    for problem in problems:
        sys.stderr.write(f"{prefix}{format_problem(problem)}\n")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="mailproxy", description="A proxy for SMTP, IMAP and POP3 with nginx's mail directives."
    )
    parser.add_argument("--version", action=_Version, nargs=0, help="show the version and exit")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    _add_run(commands.add_parser("run", help="run the proxy in the foreground"))
    _add_check(commands.add_parser("check", help="report every problem of a configuration"))
    _add_convert(commands.add_parser("convert", help="print an nginx.conf as a MailProxy manifest"))
    return parser


def _add_file(parser: argparse.ArgumentParser, kinds: str, read: Callable[[str], Path] = Path) -> None:
    """Add the argument FILE, also as ``-f``."""
    one = parser.add_mutually_exclusive_group(required=True)
    one.add_argument("file", nargs="?", type=read, metavar="FILE", help=kinds)
    one.add_argument("-f", "--file", dest="option", type=read, metavar="FILE", help="the same")


class _Version(argparse.Action):
    """``--version``: imports the version only when it is requested."""

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        from mailproxy.supervisor.version import version  # noqa: PLC0415

        write_output(f"mailproxy {version()}\n")
        parser.exit()


def _add_run(parser: argparse.ArgumentParser) -> None:
    parser.set_defaults(command=_run)
    parser.description = (
        "Runs the proxy until SIGTERM or SIGINT, which drain it; a second one ends it at once. "
        "SIGHUP, or a change of FILE or of a file that it refers to, loads the configuration again. "
        "SIGUSR1 opens the log files of an nginx.conf again."
    )
    _add_file(parser, _FILE_HELP, _regular_path)
    parser.add_argument(
        "--workers",
        type=workers,
        metavar="N|auto",
        help="worker processes, in place of those of FILE; auto: as many as there are processors to use",
    )
    parser.add_argument(
        "--admin",
        type=admin,
        default=("127.0.0.1", 9113),
        metavar="ADDRESS:PORT",
        help="address of /metrics, /healthz, /readyz and /config (127.0.0.1:9113; port 0: any)",
    )
    parser.add_argument(
        "--log-format", choices=_FORMATS, help="format of log lines (text on a terminal, json elsewhere)"
    )
    parser.add_argument(
        "--log-level",
        choices=[str(level) for level in LogLevel],
        help="the least severe level that is logged, in place of FILE's error_log",
    )


def _add_check(parser: argparse.ArgumentParser) -> None:
    parser.set_defaults(command=_check)
    parser.description = (
        "Prints every problem on standard error and exits with 1; "
        "where there is none, it prints one line and exits with 0."
    )
    _add_file(parser, f"{_FILE_HELP}; - for standard input")


def _add_convert(parser: argparse.ArgumentParser) -> None:
    parser.set_defaults(command=_convert)
    parser.description = (
        "Prints an equivalent MailProxy manifest on standard output, and on standard error "
        "what could not be carried over, with its line."
    )
    _add_file(parser, "an nginx.conf; - for standard input")
    parser.add_argument("--name", default="mailproxy", help="name of the resource (mailproxy)")
    parser.add_argument("--namespace", default="default", help="its namespace (default)")


def _regular_path(text: str) -> Path:
    if text == "-":
        raise argparse.ArgumentTypeError("standard input cannot be read again at a reload; run needs a file")
    return Path(text)
