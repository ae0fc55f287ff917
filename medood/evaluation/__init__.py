"""How good networks are, and what people see of it.

scores      of a test fold, from what was counted in its patches
objects     which true objects are found, by their size
ranking     scores that no threshold moves
testing     networks on the test patches of a fold
statistics  differences of two networks, with intervals
tables      scores and data as people read them
figures     pictures and plots
page        the one writer of pages, for all systems
report      one page with all of a test
model_card  what lies beside published weights
templates/  the words of the report and of the card
"""
