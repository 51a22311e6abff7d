"""How good is an explanation: against known evidence, against the model, against people."""
