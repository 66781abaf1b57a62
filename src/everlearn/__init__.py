"""Keep teaching a language model without it forgetting."""

__version__ = "0.1.0"
