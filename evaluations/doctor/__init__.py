"""Looks for trouble in what a run left behind."""
