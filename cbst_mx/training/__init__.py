"""Step b) of a round: samples, loss, steps and SGD on one device or several, and the adversarial warm-up."""
