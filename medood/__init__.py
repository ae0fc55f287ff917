"""What two or more steps share, in rooms; each of them imports only from those before it.

pixels        counts of pixels, and the scores computed from them
markdown      tables as Markdown
attacks       changes of at most eps that make a network err
processes     the processes that torchrun started, if it did
data          what is in a workspace, and how it is read and written
commands      the commands that messages print
runs          what a step does around its science: command line, locks, provenance, parallel jobs
models        networks: built, loaded, applied to images
predicting    new images of any size, whole slides included
evaluation    scores of networks, their differences, the report
training      how a network learns: augmentation, losses, the one training loop
sample        the small synthetic data set
check         a check of the data before a run spends hours on them
"""

BACKGROUND = 0  # in a class mask, and the first channel of a network
UNSURE = 255  # in a class mask: the class of this pixel is unknown; Config allows fewer classes


class UserError(ValueError):
    """A mistake that the user can correct: shown as one sentence, without a traceback."""
