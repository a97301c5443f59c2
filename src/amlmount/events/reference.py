"""The table of events as text for docs/operations.md, between two marks; a test holds the document to it.

`python -m amlmount.events.reference docs/operations.md` writes it.
"""

import sys
from pathlib import Path

from amlmount.events.kinds import KINDS

BEGIN, END = "<!-- events: made by amlmount.events.reference -->", "<!-- events: end -->"


def render_table() -> str:
    """Return the table of all kinds of event, as Markdown."""
    rows = [f"| `{kind.name}` | {kind.severity} | {kind.meaning} | {kind.action} |" for kind in KINDS.values()]
    return "\n".join(["| event | severity | what it means | what to do |", "| --- | --- | --- | --- |", *rows])


def with_table(text: str) -> str:
    """Return a document with the table of now between its marks. Raises ValueError if it has no marks."""
    before, _, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not end:
        raise ValueError(f"there is no place for the table: {BEGIN} ... {END}")
    return f"{before}{BEGIN}\n{render_table()}\n{END}{after}"


if __name__ == "__main__":
    document = Path(sys.argv[1])
    document.write_text(with_table(document.read_text()))
