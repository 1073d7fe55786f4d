"""The application: the ``tensorflow-ranger`` command, written with the library's public names.

Importing `tensorflow_ranger` imports Keras, which reads its backend then. The application chooses
the backend first, so it imports the library inside functions.
"""
