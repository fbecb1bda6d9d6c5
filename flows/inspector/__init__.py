"""`tutelage inspect`: a local web page to read, search and review what a run released.

`app` has the pages and their addresses, `index` the texts and what can be asked of them, `measures` what is computed of
all texts in another process: neighbours, duplicates, diversity. Everything comes from release/; nothing here knows
where the vault is.
"""
