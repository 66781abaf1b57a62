"""The command line: arguments to recipe, nothing else."""
