"""Step b) of a round: samples, loss, SGD, and the adversarial warm-up before the rounds."""
