"""Symptoms of trouble in what a run left behind."""
