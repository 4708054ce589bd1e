"""Reference service of Bareforge."""

__version__ = "0.1.0"
