"""PyTorch in half precision on a GPU: the runtime, and its kernels between convolutions."""
