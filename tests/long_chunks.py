"""Dialogues with a date that are as long as a test wants."""

DATES = ("[Dialogue at timestamp 2023/05/01]", "[Dialogue at timestamp 2023/06/02]")


def talk(date, first, last):
    lines = (f"Anna Berger has a parrot number {i}." for i in range(first, last))
    return "\n".join([date, *lines])
