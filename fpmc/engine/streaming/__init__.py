"""The sum over the source by tiles of PyTorch arrays: any operator, any device."""
