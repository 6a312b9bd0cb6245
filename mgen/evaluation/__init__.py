"""Evaluation: extractors, streaming statistics, Fréchet distance, Inception Score, and results that say how they were made."""
