"""The parts of the page on a run or a comparison, one a file."""
