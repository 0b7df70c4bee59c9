"""One module per kind of job, named after it. `python -m cupola_trainer JOB.json` calls its function `run(job)`."""
