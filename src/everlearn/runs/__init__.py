"""The stage loop, the run folder and the comparison of methods."""
