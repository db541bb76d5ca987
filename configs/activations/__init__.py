"""Studies of activation quantization, one paper each."""
