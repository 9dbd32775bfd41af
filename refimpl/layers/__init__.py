"""One file per function of the model: a forward and its backward side by side, linked by `saved`."""
