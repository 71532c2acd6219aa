"""Mutated tables, tar shards, folders, source specs and images, read as training reads them."""

import collections
import io
import json
import os
import pathlib
import random
import tarfile
from collections.abc import Callable

import numpy as np
from PIL import ExifTags, Image

from benchmarks.mutation import check, mutate
from vit_jax.data.augment import parse_augmentation
from vit_jax.data.images import EncodedImage
from vit_jax.data.sources import captions_of, open_source
from vit_jax.errors import UserError
from vit_jax.inputs import ImageInputs


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


def fuzz_image(folder: pathlib.Path, rng: random.Random) -> collections.Counter[str]:
    """Converts a mutated image to a model's input, as evaluation and training do."""
    del folder
    data = mutate(image(rng), rng)
    for text in ("", "random_resized_crop", "affine|flip", "background|resize('pad')"):
        augment = parse_augmentation(text, ImageInputs(size=(224, 160)), max_pixels=10**7)
        augment(EncodedImage(data, "the image"), np.random.default_rng(0))
    return collections.Counter(decoded=1)


def reads(
    make: Callable[[pathlib.Path, random.Random], str],
) -> Callable[[pathlib.Path, random.Random], collections.Counter[str]]:
    """Turns a function that writes a source into one that also reads it."""
    return lambda folder, rng: read(make(folder, rng))


SUBJECTS = {
    "table": reads(fuzz_table),
    "tar": reads(fuzz_tar),
    "folder": reads(fuzz_folder),
    "spec": reads(fuzz_spec),
    "image": fuzz_image,
}
