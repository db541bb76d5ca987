"""Studies of weight-only methods: one paper each."""
