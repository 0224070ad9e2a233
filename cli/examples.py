"""Examples below the help of a command: complete command lines, each of which a test parses."""

HEADING = "Examples:"


def examples(*lines: str) -> str:
    """Return the epilog that shows command lines, one a line."""
    # rich's help joins single line ends and keeps those of paragraphs.
    return "\n\n".join([f"[bold]{HEADING}[/bold]", *lines])
