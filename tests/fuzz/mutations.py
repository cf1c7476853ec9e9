"""Random damage to bytes, texts, JSON values and names."""

import copy
import json
import random
import re
from collections.abc import Sequence
from typing import Any

HOSTILE_TEXTS = (
    "",
    " ",
    "\0",
    "a\0b.jpg",
    "a\nb.jpg",
    "\r",
    "\x1b[2J\x1b]0;x\x07",
    "\u202egpj.exe",
    "\ud800",
    "\u2028",
    "\ufeff",
    "漢字 é.jpg",
    "e\u0301.jpg",
    "x" * 300 + ".jpg",
    "../../x.jpg",
    "DFBench/../../x.jpg",
    "/etc/passwd",
    "C:\\x.jpg",
    "\\\\host\\x.jpg",
    "DFBench//Kolors//0.jpg",
    "DFBench/Kolors/./0.jpg",
    "CON",
    "=1+1",
    "'; --",
    "{{ 7*7 }}",
    "${x}",
    "<script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    "\"'></svg></style></title><b onclick=x>",
    "]]>-->",
    "javascript:alert(1)",
    "&lt;b&gt;&#0;",
    "%s%n%99999d",
    "nan",
    "1e999",
    "A",
    "B",
)

NOT_FOR_TERMINALS = re.compile("[\0-\x09\x0b-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
"""What moves the cursor, turns the direction of writing round or cannot be printed; a line break may be."""

HOSTILE_VALUES = (
    None,
    True,
    False,
    0,
    -1,
    1,
    2**31,
    2**64,
    -(2**63),
    10**400,
    0.5,
    -0.0,
    1e308,
    float("nan"),
    float("inf"),
    [],
    {},
    [[]],
    [None],
    {"": {}},
    {"a": [{"b": None}]},
    [1, "1"],
    *HOSTILE_TEXTS,
)


def damage(rng: random.Random, data: bytes, times: int | None = None) -> bytes:
    """Bytes with one or a few random changes."""
    for _ in range(times or rng.choice((1, 1, 1, 2, 5))):
        data = _damage(rng, data)
    return data


def _damage(rng: random.Random, data: bytes) -> bytes:
    start = rng.randrange(len(data) + 1)
    end = min(len(data), start + rng.choice((1, 1, 2, 4, 16, 200)))
    changed = bytearray(data)
    match rng.randrange(9):
        case 0 if data:
            changed[start - 1] ^= 1 << rng.randrange(8)
        case 1:
            return data[:start]
        case 2:
            del changed[start:end]
        case 3:
            changed[start:start] = data[start:end]
        case 4:
            changed[start:end] = rng.randbytes(end - start)
        case 5:
            changed[start:end] = rng.choice((b"\0", b"\xff", b"\x7f", b"\x80")) * (end - start)
        case 6:
            changed[start:start] = rng.randbytes(end - start)
        case 7:
            other = rng.randrange(len(data) + 1)
            changed[start:end] = data[other : other + end - start]
        case _:
            return data + rng.choice((data, b"\0" * 100, rng.randbytes(30)))
    return bytes(changed)


def damage_json(rng: random.Random, value: Any) -> Any:
    """A copy of a JSON value with something else at a random place, however deep."""
    value = copy.deepcopy(value)
    places = list(_places(value))
    if not places:
        return rng.choice(HOSTILE_VALUES)
    holder, key = rng.choice(places)
    match rng.randrange(8):
        case 0:
            del holder[key]
        case 1 if isinstance(holder, dict):
            holder[rng.choice(HOSTILE_TEXTS)] = holder.pop(key)
        case 2 if isinstance(holder, list):
            holder.insert(rng.randrange(len(holder) + 1), copy.deepcopy(holder[key]))
        case 3:
            holder[key] = [holder[key]]
        case 4:
            holder[key] = str(holder[key])
        case 5 if isinstance(holder[key], int | float):
            holder[key] = rng.choice((holder[key] * 2, holder[key] + 1, -holder[key], holder[key] / 2))
        case _:
            holder[key] = rng.choice(HOSTILE_VALUES)
    return value


def _places(value: Any) -> Any:
    """(dictionary or list, key or number) of every value inside another."""
    children = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, child in list(children):
        yield value, key
        yield from _places(child)


def damage_json_text(rng: random.Random, text: str) -> bytes:
    """A JSON text, damaged as a value or as bytes."""
    if rng.random() < 0.3:
        return damage(rng, text.encode())
    if rng.random() < 0.05:
        return rng.choice((b"", b"[" * 100_000, b'{"a":' * 3000, b"1" * 10_000, b"\xff\xfe{}", b"null", b'"x"', b"[]"))
    return json.dumps(damage_json(rng, json.loads(text)), ensure_ascii=rng.random() < 0.5).encode(
        errors="surrogatepass"
    )


def damage_lines(rng: random.Random, text: str, separator: str = ",") -> bytes:
    """A table as text: cells, lines or bytes changed."""
    if rng.random() < 0.3:
        return damage(rng, text.encode())
    lines = text.splitlines(keepends=True)
    for _ in range(rng.choice((1, 1, 2))):
        at = rng.randrange(len(lines))
        match rng.randrange(6):
            case 0 if len(lines) > 1:
                del lines[at]
            case 1:
                lines.insert(rng.randrange(len(lines) + 1), lines[at])
            case 2:
                rng.shuffle(lines)
            case 3:
                lines[at] = lines[at].rstrip("\n") + rng.choice((",", '"', "\r\n", "\r", "\0\n", ",,,,\n", ""))
            case _:
                cells = lines[at].rstrip("\n").split(separator)
                cells[rng.randrange(len(cells))] = odd_cell(rng, cells)
                lines[at] = separator.join(cells) + "\n"
    return "".join(lines).encode(errors="surrogatepass")


def odd_cell(rng: random.Random, cells: Sequence[str]) -> str:
    numbers = (
        "",
        "nan",
        "NaN",
        "inf",
        "-inf",
        "-1",
        "-0.0",
        "1.5",
        "1e-400",
        "1e400",
        "0x1",
        "1_0",
        "٣",
        " .5 ",
        "+.5",
    )
    letters = ("a", "b", "C", " A", "B ", "A,B", '"A"', "А", "real", "0")  # the last A is a Cyrillic one
    return rng.choice((rng.choice(numbers), rng.choice(letters), rng.choice(HOSTILE_TEXTS), rng.choice(cells)))
