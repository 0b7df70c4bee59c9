"""One file a kind of job, named as the kind is, with a function `run(job)`:
`python -m cupola_trainer JOB.json` calls it."""
