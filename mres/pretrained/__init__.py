"""Weights into a model: a whole one's from a run or a file of mres, a tower's from the files of other libraries.

They are matched with a model by names and shapes, for which it needs no memory, and then read tensor by tensor.
"""
