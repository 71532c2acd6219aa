"""What the commands share: flags, messages, and errors on one line."""

import json
import logging
import os
import pathlib
import sys
from collections.abc import Callable, Sequence

from absl import app, flags
from absl import logging as absl_logging

from vit_jax.errors import Interrupted, UserError, unknown

EXIT_USER_ERROR = 2
EXIT_INTERRUPTED = os.EX_TEMPFAIL  # 75: start the same command again to go on


def run(main: Callable[[], None]) -> None:
    """Runs a command: parses flags, prints a user's error as one line and sets the exit code."""

    def without_arguments(arguments: Sequence[str]) -> None:
        if arguments:
            _fail(f"unexpected argument {arguments[0]!r}: every option starts with --")
        main()

    run_with_arguments(without_arguments)


def run_with_arguments(main: Callable[[Sequence[str]], None]) -> None:
    """`run` for a command that takes arguments besides its flags."""

    def guarded(argv: Sequence[str]) -> None:
        try:
            main(argv[1:])
        except Interrupted as stop:
            print(stop, file=sys.stderr)
            sys.exit(EXIT_INTERRUPTED)
        except UserError as error:
            _fail(str(error))

    _use_huge_pages()
    _set_up_logging()
    app.run(guarded, flags_parser=_parse_flags)


def _use_huge_pages() -> None:
    """Starts the process again with huge pages for malloc, which glibc reads only at the start.

    On CPU, XLA takes its temporaries from malloc at every step; without huge pages a third of a
    training step goes into page faults (benchmarks/huge_pages.sh).
    """
    if sys.platform != "linux" or "GLIBC_TUNABLES" in os.environ:
        return
    os.environ["GLIBC_TUNABLES"] = "glibc.malloc.hugetlb=1"
    os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


def _parse_flags(argv: Sequence[str]) -> list[str]:
    for i, arg in enumerate(argv):
        if arg.lstrip("-") == "config" and i + 1 < len(argv):
            _check_recipe(argv[i + 1])
        elif arg.lstrip("-").startswith("config="):
            _check_recipe(arg.partition("=")[2])
    try:
        return flags.FLAGS(argv)
    except (flags.Error, AttributeError, KeyError, ValueError, TypeError) as error:
        # KeyError quotes its message; a second line holds the nearest name.
        text = str(error.args[0]) if error.args else str(error)
        lines = [line.strip(" '\"") for line in text.replace("\\n", "\n").splitlines()]
        _fail(": ".join(line for line in lines if line).replace("\\", ""))
    raise AssertionError("unreachable")


def _check_recipe(argument: str) -> None:
    """Names the nearest recipe where there is no such file."""
    path = pathlib.Path(argument.partition(":")[0])
    if not path.is_file():
        recipes = [str(p) for p in sorted(path.parent.glob("*.py"))]
        _fail(str(unknown(str(path), recipes, "config file")))


def _set_up_logging() -> None:
    """The library's messages plainly on stderr; of other libraries errors alone."""
    absl_logging.use_absl_handler()
    absl_logging.set_verbosity(absl_logging.ERROR)
    logger = logging.getLogger("vit_jax")
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(message)s"))
    logger.handlers, logger.propagate = [handler], False
    logger.setLevel(logging.INFO)


def _fail(message: str) -> None:
    print(f"error: {message}", file=sys.stderr)
    sys.exit(EXIT_USER_ERROR)


def print_metrics(figures: dict[str, float]) -> None:
    """Prints metrics as a table on stdout, once however many processes there are."""
    import jax

    if jax.process_index():
        return
    width = max(map(len, figures), default=0)
    for name, value in figures.items():
        print(f"{name:<{width}}  {value:.4f}")


def print_json(figures: dict[str, float]) -> None:
    """Prints metrics as one JSON object on stdout, once however many processes there are."""
    import jax

    if not jax.process_index():
        print(json.dumps(figures))
