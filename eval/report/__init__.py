"""The report of a comparison: tables, plots and a page, from the records of its runs."""
