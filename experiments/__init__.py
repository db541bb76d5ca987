"""Studies: configs in, tables with their provenance out.

    python -m experiments.run --config=configs/quickstart.py [--config.field=value]
    python -m experiments.report runs/
    python -m experiments.catalogue [--json]

A study is one file under `configs/`. Its numbers land in `runs/<study>/<hash>/`, where the hash covers everything
that decides them: the resolved config, the text, the model, the versions and the source. So numbers of different code
are never mixed, and a killed run goes on where it stopped.

The rooms: `settings` (what a config may say), `sweep` (a config as a list of rows), `store` (files of one run),
`provenance`, `subject` (the model under study), `study` (rows computed one by one), `report` (one HTML page),
`catalogue` (what of the field exists here, derived from what is in the tree), `benchmarks` (times against peers).
"""
