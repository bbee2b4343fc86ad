"""The program of docs/guides/distribute.md, with numbers that a test can afford."""

import pages

PAGE = pages.DOCS / "guides" / "distribute.md"


def small_program():
    [program] = pages.code(PAGE)
    numbers = "1_000_000, 512, 1024, 1000"
    assert numbers in program
    return program.replace(numbers, "64, 16, 8, 2").replace("112", "32")
