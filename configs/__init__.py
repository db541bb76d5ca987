"""Studies, one file each: the docstring states paper, expected result, cost and command; `get_config` the values."""
