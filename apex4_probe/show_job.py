"""The verb ``show``: a profile for a person, for an issue or for a program, and what its numbers measure."""

from __future__ import annotations

from typing import Literal

from rich.console import Console

from apex4_probe.deployment import Profile
from apex4_probe.descriptions import descriptions
from apex4_probe.reports import paste
from apex4_probe.reports.console_table import ASCII, ConsoleTables
from apex4_probe.reports.terminal import print_profile
from apex4_probe.reports.wording import clean

Format = Literal["table", "md", "csv", "json"]


def show_job(profile: Profile, format: Format, describe: bool, console: Console) -> None:
    """Print ``profile`` in ``format``; ``describe``: what each of its numbers measures, in place of the numbers."""
    if format != "table":
        _write(described(profile, format) if describe else pasted(profile, format), console)
    elif describe:
        printer = ConsoleTables(console)
        printer.heading("What each number measures")
        for name, sentence in descriptions(profile):
            printer.sentence(clean(name))
            printer.sentence(sentence, indent=4)
    else:
        print_profile(profile, console)


def pasted(profile: Profile, format: Format) -> str:
    """The profile as text of ``format``: "md", "csv" or "json"."""
    write = {"md": paste.markdown, "csv": paste.comma_separated, "json": paste.as_json}
    return write[format](profile)


def described(profile: Profile, format: Format) -> str:
    """What each number of the profile measures, as text of ``format``."""
    sentences = descriptions(profile)
    if format == "md":
        return paste.markdown_table(paste.described_table(sentences)) + "\n"
    return paste.described_csv(sentences) if format == "csv" else paste.described_json(sentences)


def _write(text: str, console: Console) -> None:
    """As it is: no wrapping, which would break a table; in what the output's encoding can carry."""
    if not console.encoding.lower().replace("-", "").startswith("utf"):
        text = text.translate(ASCII).encode("ascii", "backslashreplace").decode("ascii")
    print(text, end="", file=console.file)
