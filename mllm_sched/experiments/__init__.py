"""Experiments, their metrics, tables and figures, and the claims judged by them."""
