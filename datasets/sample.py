"""The built-in text, for first runs and tests without a download: the manual pages that Python carries."""


def sample_bytes() -> bytes:
    """The sample as UTF-8, about half a megabyte. It differs between Python versions: compare by its SHA-256."""
    from pydoc_data.topics import topics  # half a megabyte of text: only for those who ask for it

    return "\n".join(topics.values()).encode()
