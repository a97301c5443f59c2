"""The page docs/blobfuse2-keys.md, made from the table; a test holds the file against it.

`python -m amlmount.blobfuse2.reference` prints the page.
"""

from amlmount.blobfuse2.key import Key
from amlmount.blobfuse2.table import SECTION_KEYS

_INTRO = """# blobfuse2 keys

Every key of blobfuse2's YAML, as amlmount knows it (blobfuse2 2.0.0 to 2.5.6). This page is made from the table in
`src/amlmount/blobfuse2`: do not edit it, run `python -m amlmount.blobfuse2.reference > docs/blobfuse2-keys.md`.

Keys can be set for a mount under `blobfuse2:`, with the same sections and names. Those whose *Set by* says who decides
them cannot: amlmount sets them itself. *Reload*: `yes` = applied when the file changes; `resets` = applied, and back
to zero when it is missing then (amlmount always writes it). Sizes and times are in the unit given.
"""


def reference() -> str:
    """Return the page as Markdown."""
    return _INTRO + "".join(_section(name, keys) for name, keys in SECTION_KEYS.items())


def _section(name: str, keys: tuple[Key, ...]) -> str:
    head = "| Key | Type | Default | Since | Reload | Meaning | Set by |\n| --- | --- | --- | --- | --- | --- | --- |\n"
    return f"\n## {f'`{name}`' if name else 'Top level'}\n\n{head}" + "".join(_row(key) for key in keys)


def _row(key: Key) -> str:
    reload = "resets" if key.reset else "yes" if key.hot else ""
    cells = (f"`{key.name}`", _kind(key), _default(key), _since(key), reload, _meaning(key), _set_by(key))
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |\n"


def _kind(key: Key) -> str:
    return f"{key.kind}, {key.unit}" if key.unit else key.kind


def _default(key: Key) -> str:
    if key.default_text:
        return key.default_text
    if key.default is None:
        return ""
    return str(key.default).lower() if isinstance(key.default, bool) else str(key.default)


def _since(key: Key) -> str:
    return f"{key.since} to {key.until}" if key.until else key.since


def _meaning(key: Key) -> str:
    parts = [key.doc]
    if key.allowed and key.name != "components":
        parts.append("One of " + ", ".join(f"`{word}`" for word in key.allowed) + ".")
    if key.conflicts:
        parts.append("Not with " + ", ".join(f"`{other}`" for other in key.conflicts) + ".")
    if key.secret:
        parts.append("Secret.")
    if key.warn:
        parts.append(f"Beware: {key.warn}.")
    if key.instead:
        parts.append(f"Use `{key.instead}`.")
    if key.env:
        parts.append(f"Environment: `{key.env}`.")
    return " ".join(parts)


def _set_by(key: Key) -> str:
    if key.owner:
        return key.owner
    return {"flag": "the command line", "testing": "tests only"}.get(key.status, "")


if __name__ == "__main__":
    print(reference(), end="")
