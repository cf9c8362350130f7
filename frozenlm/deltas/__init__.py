"""Delta tuning: small trained changes to what the frozen LM computes; one method a file."""
