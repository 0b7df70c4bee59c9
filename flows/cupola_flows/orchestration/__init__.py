"""Recipes as Prefect flows: in this process, on a server that is found or started, by a worker."""
