"""Parameters to and from other implementations' names and files: relabelling, reshaping and reordering, never arithmetic."""

from refimpl.convert.names import from_adaptive_span, published_names, to_adaptive_span

__all__ = ["from_adaptive_span", "published_names", "to_adaptive_span"]
