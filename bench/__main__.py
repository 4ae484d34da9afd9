"""Run the measurements, one after the other, and print their tables."""

from __future__ import annotations

import argparse

from rich.console import Console

from bench import crawls, flight, kills, letters, noop, outages, portal, repairs, videos

TABLES = {
    "noop": noop.run,
    "portal": portal.run,
    "kills": kills.run,
    "letters": letters.run,
    "repairs": repairs.run,
    "video-kills": videos.run,
    "video-flight": flight.run,
    "crawls": crawls.run,
    "outages": outages.run,
}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(TABLES)}")
    parser.add_argument("--quick", action="store_true", help="small numbers, to see that it runs")
    options = parser.parse_args()
    unknown = set(options.names) - set(TABLES)
    if unknown:
        parser.error(f"there is no {', '.join(unknown)}; there are {', '.join(TABLES)}")
    console = Console(width=110)
    for name in options.names or TABLES:
        TABLES[name](console, quick=options.quick)


if __name__ == "__main__":
    main()
