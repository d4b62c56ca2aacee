"""Consuming a profile: the linear layer whose kernels it chose."""
