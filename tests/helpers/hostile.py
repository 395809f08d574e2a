"""What must not be unpickled."""

import os


class Calls:
    """Calls a function when it is unpickled."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


class Hostile(Calls):
    """Makes a folder when it is unpickled."""

    def __init__(self, folder):
        super().__init__(os.mkdir, str(folder))
