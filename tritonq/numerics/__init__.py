"""Number formats that kernels, files and modules share: schemes, scales, packed codes, memory layouts of weights."""
