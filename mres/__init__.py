"""mres: referring-expression segmentation at every granularity, trained at any scale."""

__version__ = "0.1.0"
