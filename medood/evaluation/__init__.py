"""How good networks are, and the reports of it.

scores      of a test fold, from the counts of its patches
objects     true objects found, by their size
ranking     scores without a threshold
testing     networks on the test patches of a fold
statistics  differences of two networks, with intervals
tables      scores and data for readers
figures     pictures and plots
page        the one writer of pages, for all systems
report      one page on a whole test
model_card  the text published with the weights
templates/  the texts of the report and of the card
"""
