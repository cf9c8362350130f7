"""How long a test waits for another process."""

# Seconds: enough where the tests get a hundredth of a core, and a hang still ends.
PATIENCE = 1800.0
