"""`tutelage audit power`: how often a gate is wrong, on pipelines that leak on purpose and some that cannot leak.

`ground` has what the worlds are made of, `worlds` one world and the attacks on it, `gates` many of them and a gate's
verdicts, `view` the table.
"""
