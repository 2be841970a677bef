"""Builders of data sets in the form of TFDS, as ArrayRecord and without TensorFlow."""
