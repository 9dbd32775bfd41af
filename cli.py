"""The `refimpl` command."""
