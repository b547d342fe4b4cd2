"""`python -m workflow`: see `workflow.cli`."""

import sys

from common.calling import call

sys.exit(call("workflow.cli", sys.argv[1:]))
