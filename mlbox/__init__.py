"""mlbox: a GPU work place over nothing but SSH."""

__version__ = "0.1.0"
