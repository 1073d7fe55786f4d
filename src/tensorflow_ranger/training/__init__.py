"""What plugs into Keras' `fit`."""
