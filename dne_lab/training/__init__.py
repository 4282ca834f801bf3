"""How it is learned: the one loop, its checkpoints and records, grids of runs."""
