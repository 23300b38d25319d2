# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
"""The command `pixloc`. Each verb is a module of its name with `add_parser(subparsers)` and `run(args)`.

The modules import what is heavy through `lazy`, so that help and usage errors come at once.
"""

import argparse
import importlib
import os
import sys

from .. import __version__
from ..errors import InputError
from .arguments import HelpFormatter

VERBS = ("map", "localize", "track", "replay", "evaluate", "suite", "basin", "show", "demo", "simulate")
VERBS += ("dataset", "weights", "features", "train")
EXIT_INPUT_ERROR = 2
EXIT_INTERRUPTED = 130


def build_parser() -> argparse.ArgumentParser:
    """The parser of all verbs; each sets `run` to its function."""
    parser = argparse.ArgumentParser(
        prog="pixloc",
        description="Localize a camera against a prior map by aligning image features.",
        epilog="examples:\n"
        "  pixloc map colmap --model site/sparse/0 --images site/images -o site.pixmap\n"
        "  pixloc track --map site.pixmap drive_bag -o out/drive\n"
        "  pixloc demo\n\n'pixloc VERB --help' shows more of each.",
        formatter_class=HelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"pixloc {__version__}")
    subparsers = parser.add_subparsers(title="verbs", metavar="VERB", required=True)
    for verb in VERBS:
        importlib.import_module(f"{__package__}.{verb}").add_parser(subparsers)
    return parser


def main(argv: list[str] | None = None) -> int:
    """Run one command → its exit code: 0 done, 1 done but the result is bad, 2 the input is at fault, 130 interrupted."""
    words = sys.argv[1:] if argv is None else argv
    if words[:1] == ["evaluate"] and "--suite" in words:  # its former name
        words = ["suite", *(word for word in words[1:] if word != "--suite")]
    args = build_parser().parse_args(words)
    try:
        return args.run(args) or 0
    except InputError as error:
        print(f"pixloc: error: {' '.join(str(error).split())}", file=sys.stderr)
        return EXIT_INPUT_ERROR
    except KeyboardInterrupt:
        print("pixloc: interrupted", file=sys.stderr)
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        # The reader of our output has gone (`pixloc ... | head`); keep the interpreter from flushing into it again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


if __name__ == "__main__":
    sys.exit(main())
