"""Random changes of a file, and the check of the error that they lead to."""

import random

_TOKENS = (
    b"", b"\0", b"\xff\xfe", b"\n", b'"', b"'", b",", b"\t", b";", b"{", b"}", b"[", b"]", b"{}",
    b".", b"[[", b"nan", b"null", b"-1", b"1e999", b"99999999999999999999", b"true", b"://", b"../",
    b"*", b"?", b"?label=none", b"&delimiter=tab", b"[1:", b"%]", b" + ", b"0.5*", b"\xed\xa0\x80",
    b"\\ud800", b"/dev/zero", b"file://", b"memory://", b"{0..99}", b"label", b"captions", b"txt",
    b"cls",
)  # fmt: skip


def mutate(data: bytes, rng: random.Random) -> bytes:
    """Changes a few places of a file."""
    changed = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 5, 20))):
        place = rng.randrange(len(changed) + 1)
        end = min(len(changed), place + rng.choice((0, 1, 1, 4, 50)))
        action = rng.randrange(5)
        if action == 0:
            changed[place:end] = rng.choice(_TOKENS)
        elif action == 1:
            changed[place:end] = rng.randbytes(end - place)
        elif action == 2:
            changed[place:place] = changed[place : place + rng.choice((1, 10, 512))]
        elif action == 3 and end > place:
            changed[place] ^= 1 << rng.randrange(8)
        elif rng.random() < 0.3:
            del changed[place:]
    return bytes(changed)


def check(error: Exception) -> None:
    """Refuses messages of several lines, and those that print a file.

    Weights that do not fit a model are listed, a line per tensor.
    """
    text = str(error)
    if "does not fit the model" in text:
        text = text.replace("\n  ", "")
    if len(text) > 2500 or not text.isprintable():
        raise AssertionError(f"not one line: {text[:300]!r}") from error
