"""The entry point of the command line, in a package of its own.

Importing `tensorflow_ranger` imports Keras, which reads its backend then. The command line chooses
the backend first, so what starts it stands outside the library.
"""
