"""The command ``mailproxy-operator``: arguments and exit codes; the rest is done elsewhere.

Exit codes: 0 fine, 1 the input is wrong, 2 usage, 3 could not start.  What a
command needs is imported when it is asked for: ``render`` and ``local`` need
neither kopf nor the Kubernetes client.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from enum import IntEnum
from pathlib import Path

from mailproxy_config.errors import ConfigError
from mailproxy_operator.settings import DEFAULT_IMAGE, KubeVersion


class Exit(IntEnum):
    """How the command ends."""

    FINE = 0
    WRONG_INPUT = 1
    USAGE = 2
    CANNOT_START = 3


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command.

    Args:
        argv: Its arguments; ``None`` for the process's own.

    Returns:
        The exit code.
    """
    options = _parser().parse_args(argv)
    try:
        code: int = options.command(options)
        sys.stdout.flush()
    except ConfigError as error:
        sys.stderr.write(f"{error}\n")
        return Exit.WRONG_INPUT
    except BrokenPipeError:
        sys.stderr.close()
        return Exit.WRONG_INPUT
    return code


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="mailproxy-operator", description="MailProxy resources become proxies."
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    _add_render(commands.add_parser("render", help="print the Kubernetes objects for a manifest"))
    _add_local(commands.add_parser("local", help="run a manifest on this machine, without a cluster"))
    return parser


def _version(text: str) -> KubeVersion:
    try:
        return KubeVersion.parse(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def _add_render(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "-f", "--file", type=Path, required=True, help="a MailProxy manifest; - reads standard input"
    )
    parser.add_argument(
        "--kube-version", type=_version, default=KubeVersion(1, 36), help="of the oldest node"
    )
    parser.add_argument(
        "--image", default=DEFAULT_IMAGE, help="the proxy's image where the manifest names none"
    )
    parser.set_defaults(command=_render)


def _render(options: argparse.Namespace) -> int:
    from mailproxy_operator.render.text import rendered_text  # noqa: PLC0415
    from mailproxy_operator.settings import Platform  # noqa: PLC0415

    platform = Platform(kube_version=options.kube_version, image=options.image)
    sys.stdout.write(rendered_text(_text(options.file), str(options.file), platform))
    return Exit.FINE


def _text(path: Path) -> str:
    try:
        return sys.stdin.read() if str(path) == "-" else path.read_text(encoding="utf-8")
    except OSError as error:
        from mailproxy_config.errors import Problem  # noqa: PLC0415

        raise ConfigError([Problem(str(path), error.strerror or "cannot be read")]) from error


def _add_local(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "-f", "--file", type=Path, help="a MailProxy manifest; with --demo there is a built-in one"
    )
    parser.add_argument("--secrets", type=Path, metavar="DIR", help="Secrets and ConfigMaps, as DIR/NAME/KEY")
    parser.add_argument("--demo", action="store_true", help="add mail servers and try them once")
    parser.add_argument(
        "--once", action="store_true", help="end as soon as the proxy serves (and the demo is done)"
    )
    parser.set_defaults(command=_local)


def _local(options: argparse.Namespace) -> int:
    from mailproxy_operator.local.command import local_command  # noqa: PLC0415

    if options.file is None and not options.demo:
        sys.stderr.write("local needs -f FILE, or --demo\n")
        return Exit.USAGE
    return local_command(options.file, secrets=options.secrets, demo=options.demo, once=options.once)
