"""The paper's comparison: its plan, its runs, and the records that the report is made of."""
