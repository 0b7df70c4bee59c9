"""Recipes as Prefect flows: run in this process, deployed to a server, or executed by a worker."""
