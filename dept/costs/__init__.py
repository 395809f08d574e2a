"""The costs of an experiment, from its yaml alone: parameters, memory, communication."""
