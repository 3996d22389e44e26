"""The picture of an evaluation: report.png of scripts/evaluate.py. matplotlib is imported where it is needed."""

__all__ = []
