"""Headline claims of the field as paired, replicated ablations on SmolLM2-135M: five replicates, a verdict each."""
