"""Mutated tables, tar shards, folders, source specs and images, read as training reads them.

    python benchmarks/fuzz_data.py [--count 500] [--seed 0] [--seconds 20]

Each input ends in success, in counted examples, or in a `UserError` of one line, within the limit
of time. Everything else is a fault: its seed and traceback are printed, and the exit code is 1.
"""

import argparse
import collections
import io
import json
import os
import pathlib
import random
import resource
import signal
import sys
import tarfile
import tempfile
import traceback
from collections.abc import Callable

import numpy as np
from PIL import ExifTags, Image

from vit_jax.data.augment import parse_augmentation
from vit_jax.data.images import EncodedImage
from vit_jax.data.sources import captions_of, open_source
from vit_jax.errors import UserError
from vit_jax.inputs import ImageInputs

_TOKENS = (
    b"", b"\0", b"\xff\xfe", b"\n", b'"', b"'", b",", b"\t", b";", b"{", b"}", b"[", b"]", b"{}",
    b".", b"[[", b"nan", b"null", b"-1", b"1e999", b"99999999999999999999", b"true", b"://", b"../",
    b"*", b"?", b"?label=none", b"&delimiter=tab", b"[1:", b"%]", b" + ", b"0.5*", b"\xed\xa0\x80",
    b"\\ud800", b"/dev/zero", b"file://", b"memory://", b"{0..99}", b"label", b"captions", b"txt",
    b"cls",
)  # fmt: skip


def image(rng: random.Random) -> bytes:
    """A small image of a random format."""
    stream = io.BytesIO()
    kind = rng.choice(("jpeg", "png", "webp", "gif", "bmp", "tiff", "ppm"))
    modes = ("LA", "RGBA", "P", "1", "I;16") if kind in ("png", "tiff") else ()
    size = rng.choice(((9, 7), (9, 7), (1, 900), (3000, 2)))
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = rng.randrange(9)
    noise = Image.effect_noise(size, 50).convert(rng.choice(("L", "RGB", *modes)))
    noise.save(stream, kind, **({"exif": exif} if rng.random() < 0.3 and kind != "gif" else {}))
    return stream.getvalue()


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


def rows(rng: random.Random) -> list[dict[str, object]]:
    """Rows of a table, with values of many types."""
    values = ("a fox", "", None, 3, 2.5, float("nan"), True, ["a", "b"], ["a", 3], {"x": 1}, "nan")
    labels = (0, 1, "1", "cat", None, -1, float("nan"), 3.0, [1], 10**12)
    return [
        {
            "path": rng.choice((f"{i}.img", f"{i}.img", None, 3, "pipe", "folder")),
            "caption": rng.choice(values),
            "label": rng.choice(labels),
        }
        for i in range(6)
    ]


def fuzz_table(folder: pathlib.Path, rng: random.Random) -> str:
    """A mutated table; returns its spec."""
    suffix = rng.choice((".csv", ".tsv", ".jsonl", ".parquet"))
    if suffix == ".parquet":
        data = parquet(rng)
    elif suffix == ".jsonl":
        data = "".join(json.dumps(row) + "\n" for row in rows(rng)).encode()
    else:
        mark = "\t" if suffix == ".tsv" else rng.choice(",,;\t")
        lines = [["path", "caption", "label"], *(row.values() for row in rows(rng))]
        data = "".join(mark.join(map(str, line)) + "\n" for line in lines).encode()
    for i in range(6):
        (folder / f"{i}.img").write_bytes(image(rng))
    (folder / "folder").mkdir()
    (folder / f"t{suffix}").write_bytes(mutate(data, rng))
    return f"table:{folder}/t{suffix}{rng.choice(('', '?label=none', '?caption=label'))}"


def parquet(rng: random.Random) -> bytes:
    """A Parquet file with images inside, as of Hugging Face."""
    import pyarrow as pa
    from pyarrow import parquet as pq

    images = [{"bytes": rng.choice((image(rng), None)), "path": f"{i}.png"} for i in range(6)]
    columns = {
        "image": images if rng.random() < 0.7 else [each["bytes"] for each in images],
        "caption": rng.choice((["a"] * 6, [["a", "b"]] * 6, [3] * 6, [{"x": 1}] * 6, [None] * 6)),
        "label": rng.choice(([0, 1, 2] * 2, ["a"] * 6, [0.5] * 6, [None] * 6)),
    }
    sink = io.BytesIO()
    pq.write_table(pa.table(columns), sink, row_group_size=rng.choice((2, 6)))
    return sink.getvalue()


def fuzz_tar(folder: pathlib.Path, rng: random.Random) -> str:
    """A mutated tar shard; returns its spec."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w", format=rng.choice((0, 1, 2))) as tar:
        for i in range(4):
            stem = rng.choice((f"{i}", f"img.{i}", f"x/{i}", f"._{i}", "é" * 30 + str(i)))
            row = json.dumps({"captions": rows(rng)[0]["caption"], "label": rows(rng)[0]["label"]})
            members = {"jpg": image(rng), "txt": b"a fox", "json": row.encode(), "cls": b"1"}
            for suffix in rng.sample(sorted(members), rng.randrange(1, 5)):
                info = tarfile.TarInfo(f"{stem}.{suffix}")
                info.size = len(members[suffix])
                info.type = rng.choice((tarfile.REGTYPE,) * 9 + (tarfile.SYMTYPE, tarfile.FIFOTYPE))
                tar.addfile(info, io.BytesIO(members[suffix]))
    data = stream.getvalue()
    (folder / "t.tar").write_bytes(mutate(data, rng) if rng.random() < 0.9 else data)
    return f"tar:{folder}/{rng.choice(('t.tar', '*', '*.tar', '{t,t}.tar', '[t].tar'))}"


def fuzz_folder(folder: pathlib.Path, rng: random.Random) -> str:
    """A folder with odd names, links and files of classes and labels; returns its spec."""
    root = os.fsencode(folder / "images")
    for i in range(rng.randrange(4)):
        name = mutate(b"class%d" % i, rng).replace(b"/", b"").replace(b"\0", b"")[:200] or b"x"
        os.makedirs(os.path.join(root, name), exist_ok=True)
        for j in range(2):
            file = mutate(b"%d.png" % j, rng).replace(b"/", b"").replace(b"\0", b"")[:200]
            path = os.path.join(root, name, file or b"x")
            if not os.path.lexists(path):
                with open(path, "wb") as stream:
                    stream.write(image(rng))
        if rng.random() < 0.3 and not os.path.lexists(
            link := os.path.join(root, b"link%d.png" % i)
        ):
            os.symlink(rng.choice((b".", b"nowhere", name)), link)
    lines = mutate(b"class0\nclass1\tname\nclass2\n", rng)
    (folder / "classes.txt").write_bytes(lines)
    (folder / "names.txt").write_bytes(mutate(b"class0/0.png\ta\nclass1/1.png\tb\n", rng))
    options = ("", "", f"?classes={folder}/classes.txt", f"?names_file={folder}/names.txt")
    return f"folder:{folder}/images{rng.choice(options)}"


def fuzz_spec(folder: pathlib.Path, rng: random.Random) -> str:
    """A mutated spec of good data."""
    (folder / "0.png").write_bytes(image(rng))
    (folder / "t.csv").write_text("path,caption,label\n0.png,a fox,1\n")
    good = (
        f"table:{folder}/t.csv?caption=caption&label=label",
        f"table:{folder}/t.csv[:100%] + table:{folder}/{{t,t}}.csv",
        f"0.5*table:{folder}/t.csv + 0.5*digits:test[:3]",
        f"tar:{folder}/*.tar?classes={folder}/t.csv",
        f"folder:{folder}?names_file={folder}/t.csv",
    )
    return mutate(rng.choice(good).encode(), rng).decode("utf-8", "surrogateescape")


def read(spec: str) -> collections.Counter[str]:
    """Opens a source and reads every example, as training does."""
    source = open_source(spec)
    found: collections.Counter[str] = collections.Counter()
    try:
        _ = source.labels
    except UserError as error:
        check(error)
    for row in range(min(len(source), 50)):
        try:
            example = source[row]
            decoded = example["image"]
            if isinstance(decoded, EncodedImage):
                decoded.decode()
            captions_of(example)
            json.dumps({k: v for k, v in example.items() if k != "image"}).encode()
            found["example"] += 1
        except (UserError, OSError) as error:
            check(error)
            found["counted"] += 1
    return found


def augment(data: bytes, seed: int) -> None:
    """Converts an image to a model's input, as evaluation and training do."""
    for text in ("", "random_resized_crop", "affine|flip", "background|resize('pad')"):
        augmentation = parse_augmentation(text, ImageInputs(size=(224, 160)), max_pixels=10**7)
        augmentation(EncodedImage(data, "the image"), np.random.default_rng(seed))


def check(error: Exception) -> None:
    """Refuses messages of several lines, and those that print a file."""
    if len(str(error)) > 1500 or not str(error).isprintable():
        raise AssertionError(f"not one line: {str(error)[:300]!r}") from error


SUBJECTS: dict[str, Callable[[pathlib.Path, random.Random], str]] = {
    "table": fuzz_table,
    "tar": fuzz_tar,
    "folder": fuzz_folder,
    "spec": fuzz_spec,
}


def run(count: int, seed: int, seconds: float) -> tuple[collections.Counter[str], list[str]]:
    """Reads mutated inputs.

    Args:
        count: number of inputs.
        seed: seed of the first one; the next ones follow.
        seconds: limit of time per input.

    Returns:
        Numbers of outcomes, and a description of each fault.
    """
    outcomes: collections.Counter[str] = collections.Counter()
    faults: list[str] = []

    def expire(signum: int, frame: object) -> None:
        raise AssertionError(f"longer than {seconds} s")

    signal.signal(signal.SIGALRM, expire)
    open_source("digits:test")  # imports what the first input would import
    for number in range(seed, seed + count):
        rng = random.Random(number)
        subject = rng.choice([*SUBJECTS, "image"])
        signal.setitimer(signal.ITIMER_REAL, seconds)
        try:
            with tempfile.TemporaryDirectory() as name:
                os.mkfifo(f"{name}/pipe")
                if subject == "image":
                    augment(mutate(image(rng), rng), number)
                else:
                    outcomes.update(read(SUBJECTS[subject](pathlib.Path(name), rng)))
            outcomes[f"{subject}: success"] += 1
        except UserError as error:
            outcomes[f"{subject}: one-line error"] += 1
            try:
                check(error)
            except AssertionError as wrong:
                faults.append(f"seed {number}, {subject}: {wrong}")
        except BaseException as error:
            if isinstance(error, KeyboardInterrupt):
                raise
            faults.append(f"seed {number}, {subject}:\n{traceback.format_exc(limit=-6)}")
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
    return outcomes, faults


def main() -> int:
    """Prints outcomes and faults."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--count", type=int, default=500)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--seconds", type=float, default=20.0)
    options = parser.parse_args()
    outcomes, faults = run(options.count, options.seed, options.seconds)
    for fault in faults:
        print(fault, file=sys.stderr)
    for name, count in sorted(outcomes.items()):
        print(f"{name:<24} {count:>6}")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"{len(faults)} faults in {options.count} inputs, peak memory {peak:.0f} MiB")
    return 1 if faults else 0


if __name__ == "__main__":
    os.environ.setdefault("VIT_JAX_CACHE", tempfile.mkdtemp())
    sys.exit(main())
