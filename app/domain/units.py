"""Numbers as text with their units."""

from __future__ import annotations


def duration_text(seconds: float) -> str:
    """90 -> 1 min 30 s; the two largest units."""
    if 0 < seconds < 1:
        return "< 1 s"
    left = round(max(seconds, 0))
    if left < 60:
        return f"{left} s"
    if left < 3600:
        return f"{left // 60} min {left % 60} s" if left % 60 and left < 600 else f"{round(left / 60)} min"
    if left < 86_400:
        hours, minutes = divmod(round(left / 60), 60)
        return f"{hours} h {minutes} min" if minutes else f"{hours} h"
    days, hours = divmod(round(left / 3600), 24)
    return f"{days} d {hours} h" if hours else f"{days} d"
