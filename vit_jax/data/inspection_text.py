"""The report of `inspection` as text."""

from typing import Any

_LISTED = 5  # lines of a list
_WIDTH, _KEY = 110, 48


def as_text(name: str, report: dict[str, Any]) -> str:
    """Writes a report as lines.

    Args:
        name: name of the source.
        report: result of `inspection.inspect`.
    """
    lines = [f"{name}: {report['examples']:,} examples, {report['read']:,} read"]
    broken = report["broken"]
    lines.append(f"broken       {broken['count']:,}")
    for found in broken["reasons"][:_LISTED]:
        lines += _item(found["count"], f"{_short(found['keys'][0])}: {found['reason']}")
    lines += _images(report["images"]) if report["images"] else []
    for kind, found in report["duplicates"].items():
        lines.append(f"{kind + ' copies':<12} {found['redundant']:,} in {found['groups']:,} groups")
        for group in found["largest"][:_LISTED]:
            lines += _item(group["size"], ", ".join(map(_short, group["keys"][:2])))
    lines += _captions(report["captions"])
    lines += _classes(report["classes"]) if report["classes"] else []
    return "\n".join(lines)


def _images(images: dict[str, Any]) -> list[str]:
    largest = images["largest"]
    kinds = ", ".join(f"{kind} {count:,}" for kind, count in images["kinds"].items())
    return [
        f"height       {_range(images['height'])} px",
        f"width        {_range(images['width'])} px",
        f"width/height {_range(images['aspect_ratio'])}",
        f"largest      {largest['width']:,} x {largest['height']:,} px: {largest['key']}",
        f"formats      {kinds}; {images['transparent']:,} with transparency",
    ]


def _captions(captions: dict[str, Any]) -> list[str]:
    if not captions["count"]:
        return ["captions     none"]
    lines = [
        f"captions     {captions['count']:,}, {captions['distinct']:,} distinct; "
        f"{captions['examples_without']:,} examples without",
        f"characters   {_range(captions['characters'])}",
    ]
    if tokens := captions.get("tokens"):
        lines.append(
            f"tokens       {_range(tokens)}, {tokens['truncated']:,} captions above "
            f"{tokens['context_length']}"
        )
    most = {text: count for text, count in captions["most_common"].items() if count > 1}
    for text, count in list(most.items())[:_LISTED]:
        lines += _item(count, text)
    return lines


def _classes(classes: dict[str, Any]) -> list[str]:
    lines = [
        f"classes      {classes['count']:,}; examples per class "
        f"{_range(classes['examples_per_class'])}; {classes['without_label']:,} examples without "
        f"label, {classes['without_examples']:,} classes without examples"
    ]
    counts = sorted(classes["counts"].items(), key=lambda item: -item[1])
    for name, count in counts[:_LISTED]:
        lines += _item(count, name)
    if len(counts) > _LISTED:
        lines += _item(counts[-1][1], f"{counts[-1][0]} (the smallest)")
    return lines


def _short(key: str) -> str:
    """The end of the name of an example, which tells it from others."""
    return key if len(key) <= _KEY else f"...{key[3 - _KEY :]}"


def _item(count: int, text: str) -> list[str]:
    return [f"{count:>11,}  {text if len(text) <= _WIDTH else text[: _WIDTH - 3] + '...'}"]


def _range(values: dict[str, float]) -> str:
    names = {"minimum": "", "median": "median ", "p95": "95% below ", "maximum": "maximum "}
    return ", ".join(f"{label}{values[name]:,g}" for name, label in names.items())
