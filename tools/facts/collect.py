"""`python -m tools.facts.collect DIRECTORY [--quick]`: write the facts of the code in the working directory.

One file a subject, one fact a line.
"""

from __future__ import annotations

import sys
from pathlib import Path

from tools.facts import documents, story


def main(directory: Path, *options: str) -> None:
    directory.mkdir(parents=True)
    for name, lines in (documents.facts() | ({} if options else story.facts())).items():
        (directory / f"{name}.txt").write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]), *sys.argv[2:])
