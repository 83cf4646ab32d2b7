"""As many nodes of a kind as the waiting jobs can use: ``decision`` says what to do, ``loop`` asks Slurm and does it."""
