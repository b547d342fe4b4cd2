"""`python -m workflow`: see `workflow.cli`."""

import sys

from common.cli import call

sys.exit(call("workflow.cli", sys.argv[1:]))
