"""Maps of activations x [batch..., tokens..., K]: what `Pre` puts in front of an operator and `Post` behind it."""
