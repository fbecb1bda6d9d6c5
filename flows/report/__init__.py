"""The report of a run: one self-contained HTML page, the same as JSON, and the tables in the terminal.

`render` sorts `RoundReport`s into what is shown together; `names` and `figures` word the figures, `guarantee` and
`epsilon` what is promised and what was measured of it, `attacks_view` the attacks, `limits` what is not shown; the
templates lay them out. `schema` is the JSON's.
"""
