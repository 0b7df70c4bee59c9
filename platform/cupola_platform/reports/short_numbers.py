"""Large numbers in few characters."""


def power_of_two(number: int) -> str:
    """`512`, `2K`: in units of 1,024."""
    for unit, size in (("G", 1 << 30), ("M", 1 << 20), ("K", 1 << 10)):
        if number >= size:
            return f"{number // size}{unit}"
    return str(number)


def short(count: float) -> str:
    """`812`, `12.4k`, `3.1M`."""
    for unit, size in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if count >= size:
            return f"{count / size:.3g}{unit}"
    return f"{count:.0f}"


def file_size(count: float) -> str:
    """`3.1 MB`, of bytes."""
    for unit, of in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= of:
            return f"{count / of:.1f} {unit}"
    return f"{count:.0f} B"
