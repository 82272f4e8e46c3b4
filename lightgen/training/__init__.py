"""How a learner takes a step and is saved."""
