"""Networks on devices and in files: descriptions, parameters, foreign weights, forms for inference, export."""
