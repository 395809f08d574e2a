"""What an experiment takes, from its yaml alone: parameters, memory, communication."""
