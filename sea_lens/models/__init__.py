"""Everything that runs a TransformerBridge: sites, passes, tokens, log-probabilities, answers and activations."""
