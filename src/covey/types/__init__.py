"""Named tensors, segments and their sum, clocks, random streams and the error tree. Imports NumPy only."""
