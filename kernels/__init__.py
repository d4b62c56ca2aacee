"""CUDA sources to cubins (NVRTC, disk cache) and what their machine code holds (SASS). Knows nothing of profiles."""
