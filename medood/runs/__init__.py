"""What a step does beside its science.

command_line  from arguments to settings, from a user's mistake to one sentence
commands      the commands that messages print
locks         one run at a time where two would write over each other
provenance    the table of products, and whether each is there and current
jobs          one function on many files, in threads or on a dask cluster
"""
