"""Numbers for people: three digits and a letter for sizes, thousands set apart for counts."""


def count(number: int | None) -> str:
    """`12345` as `12,345`; `-` where it is not known."""
    return "-" if number is None else f"{number:,}"


def short(number: int | None) -> str:
    """`12345` as `12.3k`; `-` where it is not known."""
    if number is None:
        return "-"
    value = float(number)
    for letter in ("", "k", "M", "G", "T"):
        if value < 999.5 or letter == "T":
            break
        value /= 1000
    return str(number) if not letter else f"{value:.3g}{letter}"


def size(number: int) -> str:
    """`12345` bytes as `12.3 kB`."""
    text = short(number)
    return f"{text[:-1]} {text[-1]}B" if text[-1].isalpha() else f"{text} bytes"


def sizes(numbers: tuple[int, ...] | None) -> str:
    """`(3, 5)` as `3x5`; `-` where it is not known."""
    return "-" if numbers is None else "x".join(map(str, numbers))


def plural(number: int, thing: str) -> str:
    """`1 site`, `2 sites`; a thing that ends in `ch` takes `es`."""
    ending = "" if number == 1 else "es" if thing.endswith("ch") else "s"
    return f"{number:,} {thing}{ending}"
