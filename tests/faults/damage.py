"""Files that are damaged at random, and what reading them comes to: refused in one line, or read as if nothing had happened.

A file is bytes; a kind of damage is a function of bytes and a random source. Each is drawn by seed and number alone, so that
any single case can be made again.
"""

import hashlib
import json
import random
from collections.abc import Callable, Mapping

Damage = Callable[[bytes, random.Random], bytes]


def flip_bits(content: bytes, draw: random.Random) -> bytes:
    """One bit to eight."""
    altered = bytearray(content)
    for _ in range(draw.choice((1, 1, 1, 2, 8))):
        altered[draw.randrange(len(altered))] ^= 1 << draw.randrange(8)
    return bytes(altered)


def truncate(content: bytes, draw: random.Random) -> bytes:
    """The end is missing, or all."""
    return content[: draw.choice((0, draw.randrange(len(content)), len(content) - 1))]


def lengthen(content: bytes, draw: random.Random) -> bytes:
    """Something follows: zeros, noise, the file once more."""
    return content + draw.choice((b"\0" * draw.randint(1, 5000), draw.randbytes(draw.randint(1, 5000)), content))


def swap_blocks(content: bytes, draw: random.Random) -> bytes:
    """Two stretches change places, as blocks of a disk might."""
    size = max(1, min(draw.choice((1, 16, 512)), len(content) // 3))
    first, second = sorted(draw.randrange(len(content) - size + 1) for _ in range(2))
    if second < first + size:
        return content[first:] + content[:first]
    one, other = content[first : first + size], content[second : second + size]
    return content[:first] + other + content[first + size : second] + one + content[second + size :]


def zero_block(content: bytes, draw: random.Random) -> bytes:
    """A stretch of zeros, as after a power failure."""
    start = draw.randrange(len(content))
    end = min(len(content), start + draw.choice((1, 64, 4096)))
    return content[:start] + bytes(end - start) + content[end:]


def enlarge_header(content: bytes, draw: random.Random) -> bytes:
    """A length at the start that no memory holds."""
    return draw.choice((2**60, 2**63, 2**64 - 1, 2**40, len(content) + 1, 100_000_001)).to_bytes(8, "little") + content[8:]


def nest(content: bytes, draw: random.Random) -> bytes:
    """Brackets, or tables, without end."""
    deep = draw.choice((100, 5_000, 200_000))
    opening, closing = draw.choice(((b"[", b"]"), (b'{"a":', b"}"), (b"a.", b""), (b"x = [[", b"")))
    nested = opening * deep + b"1" + closing * deep
    place = draw.choice((0, len(content) // 2))
    return nested if draw.random() < 0.5 else content[:place] + nested + content[place:]


def large_numbers(content: bytes, draw: random.Random) -> bytes:
    """Digits become very many digits."""
    places = [i for i, byte in enumerate(content) if chr(byte).isdigit()]
    place = draw.choice(places or [0])
    number = draw.choice((b"9" * 20, b"9" * 300, b"9" * 6000, b"1e999", b"-1", b"NaN"))
    return content[:place] + number + content[place + 1 :]


def other_encoding(content: bytes, draw: random.Random) -> bytes:
    """Bytes that are no UTF-8, or UTF-16."""
    place = draw.randrange(len(content))
    return draw.choice((content[:place] + b"\xff\xfe" + content[place:], content.decode("latin-1").encode("utf-16")))


def broken_characters(content: bytes, draw: random.Random) -> bytes:
    """What no UTF-8 has: half a surrogate, an overlong form, a code beyond the last, a character's rest; and what it has."""
    bad = draw.choice((b"\xed\xa0\x80", b"\xc0\x80", b"\xf4\x90\x80\x80", b"\x80", b"\xe2\x82",
                       b"\xef\xbf\xbf", b"\xc2\x85", b"\0"))
    place = draw.randrange(len(content) + 1)
    return content[:place] + bad * draw.choice((1, 3)) + content[place:]


def endless_line(content: bytes, draw: random.Random) -> bytes:
    """Up to a megabyte and more without a newline, or without any white space; or of newlines, or NULs, alone."""
    spaceless = b"".join(content.split())
    piece = draw.choice((content.replace(b"\n", b" "), spaceless, b"\n", b"\0"))
    return content + piece * (draw.choice((100_000, 1_200_000)) // max(1, len(piece)))


def _named(*functions: Damage) -> dict[str, Damage]:
    return {function.__name__.replace("_", " "): function for function in functions}


KINDS = _named(flip_bits, truncate, lengthen, swap_blocks, zero_block, enlarge_header, nest, large_numbers, other_encoding)
OF_TEXTS = {**KINDS, **_named(broken_characters, endless_line)}


def damaged(content: bytes, seed: int, number: int, kinds: Mapping[str, Damage] = KINDS) -> tuple[str, bytes]:
    """The kind of damage number `number`, and the file with it; never the file as it was."""
    draw = random.Random(f"{seed} {number}")
    while True:
        kind = draw.choice(list(kinds))
        altered = kinds[kind](content, draw) if content else draw.randbytes(8)
        if altered != content:
            return kind, altered


def signed(manifest: bytes, name: str, content: bytes) -> bytes:
    """checkpoint.json with checksums that fit a damaged file, as one who means harm would write it."""
    told = json.loads(manifest)
    told["files"][name] = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    del told["sha256"]
    told["sha256"] = hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()
    return json.dumps(told, indent=1).encode()
