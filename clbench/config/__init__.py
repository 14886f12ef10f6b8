"""What a run is asked for: specs `name[key=value]`, registered names, the fields of a run and its identity, errors.

It must not know torch, any method, any data set, or how a run is done.
"""
