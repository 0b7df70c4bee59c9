"""Forecasts of a job that is not run."""
