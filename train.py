"""Pre-train from a yaml: `composer -n 2 train.py yamls/dept_spec.yaml [key=value ...]`.

The command is dept/training/arguments.py, which an installed package has as `dept-train`.
"""

import sys

from dept.training.arguments import main

if __name__ == "__main__":
    sys.exit(main())
