"""Where the work runs: this process, a pool, Dask, Slurm."""
