"""Rows as a table in Markdown."""


def markdown(*rows: tuple) -> str:
    """Rows as a Markdown table; the first one is the head."""
    head, *rest = ("| " + " | ".join(map(str, row)) + " |" for row in rows)
    return "\n".join([head, "|---" + "|---:" * (len(rows[0]) - 1) + "|", *rest])
