"""Pure: no files, clock, environment or subprocess. Facts, `now` and ids come in as arguments."""
