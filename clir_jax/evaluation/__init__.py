"""Evaluation: exact search, metrics, BM25, reports."""
