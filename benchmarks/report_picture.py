"""The picture of a report in the docs: its head on a desktop in the light, its numbers on a phone in the dark.

    python benchmarks/report_picture.py [--report runs/demo/report.html] [--output docs/images/report.png]

Needs Chromium or Chrome on the PATH, or --browser; without one it says so and writes nothing. The page itself is
shown as it is, in two frames. Letters look a little different where other fonts are installed.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from html import escape
from pathlib import Path

from PIL import Image

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
DESKTOP, PHONE, HEIGHT, GAP = 1180, 390, 1500, 40
MOST_BYTES = 200_000


def frames(report: Path) -> str:
    """A page with the report twice: a frame's `color-scheme` is what the page inside prefers."""
    address = escape(report.resolve().as_uri())
    shared = f"height:{HEIGHT}px;border:0;border-radius:14px"
    return f"""<!doctype html><meta charset="utf-8">
<body style="margin:0;padding:{GAP}px;display:flex;gap:{GAP}px;background:#d9d5cb">
<iframe src="{address}" style="{shared};width:{DESKTOP}px;color-scheme:light"></iframe>
<iframe src="{address}#numbers" style="{shared};width:{PHONE}px;color-scheme:dark"></iframe>"""


def photograph(browser: str, report: Path, picture: Path) -> None:
    """Writes what the browser shows."""
    width, height = DESKTOP + PHONE + 3 * GAP, HEIGHT + 2 * GAP
    with tempfile.TemporaryDirectory() as folder:
        page = Path(folder) / "frames.html"
        page.write_text(frames(report), encoding="utf-8")
        command = [
            browser,
            "--headless",
            *(
                ["--no-sandbox"] if os.name == "posix" and os.geteuid() == 0 else []
            ),  # as root it must
            "--hide-scrollbars",
            "--disable-gpu",
            "--force-prefers-reduced-motion",  # else the phone is on its way to the numbers
            f"--user-data-dir={folder}/profile",
            f"--window-size={width},{height}",
            "--virtual-time-budget=3000",
            f"--screenshot={picture}",
            page.as_uri(),
        ]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    if done.returncode or not picture.is_file():
        raise RuntimeError(f"{browser} wrote no picture: {done.stderr.strip()[-300:]}")


def shrink(picture: Path) -> int:
    """Fewer colours, and less of the page below if that is not enough; returns the bytes left."""
    with Image.open(picture) as opened:
        shown = opened.convert("RGB")
    while True:
        palette = shown.quantize(256, dither=Image.Dither.NONE)
        palette.save(picture, optimize=True)
        size = picture.stat().st_size
        if size <= MOST_BYTES:
            return size
        shown = shown.crop((0, 0, shown.width, int(0.9 * shown.height)))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--report", type=Path, default=Path("runs/demo/report.html"))
    parser.add_argument("--output", type=Path, default=Path("docs/images/report.png"))
    parser.add_argument("--browser", default=next(filter(shutil.which, BROWSERS), None))
    options = parser.parse_args()
    if not options.report.is_file():
        sys.exit(f"there is no report at {options.report}; run `make demo`, or give --report.")
    if options.browser is None:
        sys.exit(f"no browser on the PATH ({', '.join(BROWSERS)}); install one, or give --browser.")
    options.output.parent.mkdir(parents=True, exist_ok=True)
    photograph(options.browser, options.report, options.output.resolve())
    print(f"{options.output}: {shrink(options.output):,} bytes")
    return 0


if __name__ == "__main__":
    sys.exit(main())
