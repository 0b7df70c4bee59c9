"""The flows: recipes, the stages that carry them out, and the command line. The only package that knows Prefect."""
