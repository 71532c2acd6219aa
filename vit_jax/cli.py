"""Parts that the commands share: flags, output, and errors on one line."""

import contextlib
import json
import logging
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from absl import app, flags
from absl import logging as absl_logging

from vit_jax import interruption
from vit_jax.errors import Interrupted, UserError

if TYPE_CHECKING:
    from ml_collections import ConfigDict

EXIT_USER_ERROR = 2

_OVERRIDE = "config."
_RUN_KEY = "config.KEY"  # the flag of commands that change keys of a run; documents them in --help
_overrides: list[str] = []


def define_config() -> flags.FlagHolder[str | None]:
    """Defines the flag `--config`; changes of single keys, `--config.key=value`, come with it."""
    holder = flags.DEFINE_string(
        "config", None, "Recipe, as configs/clip_emoji.py; --config.key=value changes a key."
    )
    flags.mark_flag_as_required("config")
    return holder


def define_overrides() -> Callable[[], list[str]]:
    """Defines `--config.key=value` without `--config`, for commands that open a run.

    Returns:
        A function that returns the changes, as "model.image_size=448".
    """
    flags.DEFINE_string(_RUN_KEY, None, "Another value of a key of the run's config.")
    return config_overrides


def define_mesh() -> Callable[[], dict[str, int] | None]:
    """Defines the flags `--mesh.data`, `--mesh.fsdp` and `--mesh.tensor`.

    Returns:
        A function that returns the sizes that are given, by axis; None where there are none.
    """
    holders = {
        axis: flags.DEFINE_integer(f"mesh.{axis}", None, f"{meaning}.", lower_bound=1)
        for axis, meaning in (
            ("data", "Replicas of the parameters; default: all devices that the others leave"),
            ("fsdp", "Devices that share the parameters of a replica"),
            ("tensor", "Devices that share the heads and hidden units of a layer"),
        )
    }

    def sizes() -> dict[str, int] | None:
        given = {axis: holder.value for axis, holder in holders.items()}
        return {axis: size for axis, size in given.items() if size is not None} or None

    return sizes


def load_config(recipe: str) -> "ConfigDict":
    """The config of a recipe with the changes of the command line.

    Args:
        recipe: value of `--config`.

    Raises:
        UserError: no such recipe, an unknown key, or a value of another type.
    """
    # Imported late: `--help` and mistyped flags are answered without JAX.
    from vit_jax.recipes import load_recipe

    return load_recipe(recipe, _overrides)


def config_overrides() -> list[str]:
    """The changes of config keys on the command line, as "optim.lr=0.003"."""
    return list(_overrides)


_STOPPED = "stopped; the same command starts again"


def run(main: Callable[[], None], **interruptions: Any) -> None:
    """Runs a command without positional arguments, see `run_with_arguments`."""

    def without_arguments(arguments: Sequence[str]) -> None:
        if arguments:
            _fail(f"unexpected argument {arguments[0]!r}: every option starts with --")
        main()

    run_with_arguments(without_arguments, **interruptions)


def run_with_arguments(
    main: Callable[[Sequence[str]], None], *, stopped: str = _STOPPED, **interruptions: Any
) -> None:
    """Runs a command: parses flags, prints a UserError or OSError as one line, sets the exit code.

    Args:
        main: takes the positional arguments.
        stopped: line that is printed when SIGTERM or Ctrl-C ends the command.
        **interruptions: further arguments of `interruption.watch`.
    """

    def guarded(argv: Sequence[str]) -> None:
        try:
            main(argv[1:])
        except Interrupted as stop:
            print(stop, file=sys.stderr)
            sys.exit(interruption.RESUMABLE)
        except UserError as error:
            _fail(str(error))
        except OSError as error:  # a disk that is full, a folder that cannot be written
            named = error.filename is not None and error.strerror
            _fail(f"{error.filename}: {error.strerror}" if named else str(error))
        finally:
            interruption.finish()

    interruption.block()
    _use_huge_pages()
    with contextlib.suppress(KeyboardInterrupt):  # may come before `watch` has returned
        interruption.watch(stopped, **interruptions)
        _set_up_logging()
        app.run(guarded, flags_parser=_parse_flags)
    interruption.end()


def _use_huge_pages() -> None:
    """Restarts the process with huge pages for malloc, a setting that glibc reads at start.

    On CPU, XLA allocates its temporaries with malloc in every step; without huge pages a third of a
    training step is spent in page faults (benchmarks/huge_pages.sh).
    """
    if sys.platform != "linux" or "GLIBC_TUNABLES" in os.environ:
        return
    os.environ["GLIBC_TUNABLES"] = "glibc.malloc.hugetlb=1"
    os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


def _parse_flags(argv: Sequence[str]) -> list[str]:
    """Parses flags. Changes of config keys, which absl does not know, are set aside."""
    remaining = list(argv[:1])
    _overrides.clear()
    arguments = iter(argv[1:])
    for argument in arguments:
        name = argument.lstrip("-")
        if not (argument.startswith("-") and name.startswith(_OVERRIDE)):
            remaining.append(argument)
            continue
        if "=" not in name:
            name = f"{name}={next(arguments, '')}"
        _overrides.append(name.removeprefix(_OVERRIDE))
    if _overrides and not ("config" in flags.FLAGS or _RUN_KEY in flags.FLAGS):
        _fail(f"unknown flag --config.{_overrides[0]}: this command has no --config")
    try:
        return flags.FLAGS(remaining)
    except flags.Error as error:
        _fail(": ".join(line.strip() for line in str(error).splitlines() if line.strip()))
    raise AssertionError("unreachable")


def _set_up_logging() -> None:
    """Prints messages of this library to stderr, and only errors of other libraries."""
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


def suggest(*commands: str) -> None:
    """Prints on stderr what can be done with the result of a command, on process 0 only.

    Args:
        *commands: command lines.
    """
    logging.getLogger("vit_jax").info("Next:%s", "".join(f"\n  {line}" for line in commands))


def print_metrics(metrics: Mapping[str, float]) -> None:
    """Prints metrics as a table on stdout, on process 0 only."""
    import jax

    if jax.process_index():
        return
    width = max(map(len, metrics), default=0)
    for name, value in metrics.items():
        print(f"{name:<{width}}  {value:.4f}")


def print_json(metrics: Mapping[str, Any]) -> None:
    """Prints metrics or other values as one JSON object on stdout, on process 0 only."""
    import jax

    if not jax.process_index():
        print(json.dumps(metrics))
