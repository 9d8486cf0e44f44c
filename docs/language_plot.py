"""Draws perplexity over bytes of SmolLM2-135M-Instruct, from the table in `src/language.md` that sets its widths beside llama.cpp's types.

    python3 docs/language_plot.py        # writes docs/src/language.svg
"""

import math
import re
from pathlib import Path

SOURCE = Path(__file__).parent / "src"
WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 760, 400, 60, 20, 20, 50
SIZES, PERPLEXITIES = (60, 160), (30, 70)
OURS, THEIRS = "#c2410c", "#475569"
# Where a name stands beside its point, if not above on the right: anchor, right, down.
PLACES = {
    "IQ4_XS": ("end", -7, -4), "Q4_K_M": ("start", 8, 4), "Q3_K_M": ("start", 8, 4), "Q4_0": ("start", 8, 4), "Q8_0": ("middle", 0, -9),
    "Q6_K": ("middle", 0, -9), "w2a8": ("end", -9, 4), "w3a8": ("end", -9, 6),
}  # fmt: skip


def rows() -> list[tuple[str, float, float]]:
    """Name, megabytes and perplexity of each row."""
    table = (SOURCE / "language.md").read_text().split(" | bytes | perplexity |\n", 1)[1].split("\n\n", 1)[0]
    cells = ([cell.strip(" *") for cell in line.strip("|").split("|")] for line in table.splitlines()[1:])
    return [(name.split(",")[0], int(size.replace(",", "")) / 1e6, float(value)) for name, size, value in cells]


def at(size: float, value: float) -> tuple[float, float]:
    low, high = (math.log(end) for end in PERPLEXITIES)
    right = (size - SIZES[0]) / (SIZES[1] - SIZES[0])
    up = (math.log(value) - low) / (high - low)
    return LEFT + right * (WIDTH - LEFT - RIGHT), HEIGHT - BOTTOM - up * (HEIGHT - TOP - BOTTOM)


def text(x: float, y: float, content: str, anchor: str = "start", colour: str = "#111", more: str = "") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" fill="{colour}" {more}>{content}</text>'


def line(start: tuple[float, float], end: tuple[float, float], style: str) -> str:
    (x1, y1), (x2, y2) = start, end
    return f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" {style}/>'


def main() -> None:
    found = rows()
    ours = sorted((row for row in found if re.fullmatch(r"w\da8", row[0])), key=lambda row: row[1])
    theirs = [row for row in found if re.fullmatch(r"I?Q.*", row[0])]
    floats = next(value for name, _, value in found if name == "F16")
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" font-family="sans-serif" font-size="12">',
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="#fff"/>',
    ]
    for size in range(SIZES[0], SIZES[1] + 1, 20):
        x, y = at(size, PERPLEXITIES[0])
        parts += [line((x, y), (x, TOP), 'stroke="#e5e7eb"'), text(x, y + 18, str(size), "middle")]
    for value in (30, 35, 40, 50, 60, 70):
        x, y = at(SIZES[0], value)
        parts += [line((x, y), (WIDTH - RIGHT, y), 'stroke="#e5e7eb"'), text(x - 8, y + 4, str(value), "end")]
    parts.append(line(at(SIZES[0], floats), at(SIZES[1], floats), f'stroke="{THEIRS}" stroke-dasharray="5 4"'))
    x, y = at(SIZES[0], floats)
    parts.append(text(x + 6, y - 6, f"16-bit floats, {next(size for name, size, _ in found if name == 'F16'):.0f} MB", colour=THEIRS))
    points = " ".join("{:.1f},{:.1f}".format(*at(size, value)) for _, size, value in ours)
    parts.append(f'<polyline points="{points}" fill="none" stroke="{OURS}" stroke-width="2"/>')
    for name, size, value in theirs:
        x, y = at(size, value)
        anchor, right, down = PLACES.get(name, ("start", 5, -6))
        parts += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4" fill="{THEIRS}"/>', text(x + right, y + down, name, anchor, THEIRS)]
    for name, size, value in ours:
        x, y = at(size, value)
        anchor, right, down = PLACES.get(name, ("middle", 0, 20))
        parts.append(f'<rect x="{x - 5:.1f}" y="{y - 5:.1f}" width="10" height="10" fill="{OURS}"/>')
        parts.append(text(x + right, y + down, f"{name[1]} bits", anchor, OURS, 'font-weight="bold"'))
    x, y = at(104, 62)
    parts += [
        f'<rect x="{x - 5:.1f}" y="{y - 9:.1f}" width="10" height="10" fill="{OURS}"/>',
        text(x + 12, y, "this project: one set of stored codes, switched by a shift"),
        f'<circle cx="{x:.1f}" cy="{y + 18:.1f}" r="4" fill="{THEIRS}"/>',
        text(x + 12, y + 22, "llama.cpp: a file of its own for each type"),
        text((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 10, "MB of the file of one width", "middle"),
        text(18, HEIGHT / 2 - 15, "perplexity", "middle", more=f'transform="rotate(-90 18 {HEIGHT / 2 - 15})"'),
        "</svg>",
    ]
    (SOURCE / "language.svg").write_text("\n".join(parts) + "\n")


if __name__ == "__main__":
    main()
