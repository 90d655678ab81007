"""Helpers that know nothing of quantization: files, tables, progress bars, timing."""
