"""qjax: every published way of making a network's numbers smaller, as a pure transform over a pytree of parameters."""
