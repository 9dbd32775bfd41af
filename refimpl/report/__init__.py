"""A run as one HTML page: what was logged, what the model attends to, where it predicts well."""
