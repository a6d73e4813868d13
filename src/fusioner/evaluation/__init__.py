"""Evaluation protocols, measures with bootstrap intervals, paired comparison of runs, and reports."""
