"""Studies of rotations, one paper each."""
