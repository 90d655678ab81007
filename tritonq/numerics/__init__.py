"""The numbers that kernels, files and modules share: schemes, scales, packed codes, and how weights lie in memory."""
