"""A stand-in for visdom, see pyproject.toml."""
