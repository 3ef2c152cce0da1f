"""What the GPU back ends share: device, streams, memory, arrays and frames."""
