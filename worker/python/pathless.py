"""Begins the host out of an archive that is in memory, for an interpreter that can't be given a path to it."""

import sys
from importlib.machinery import ModuleSpec

HOME = "fpmd-host/"  # stands for the archive's path


class Host:
    """Finds and loads what the archive has of the host."""

    def __init__(self, archive):
        self.archive = archive

    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "_fpmd":
            return ModuleSpec(name, self, is_package=name == "_fpmd")
        return None

    def create_module(self, spec):
        return None

    def exec_module(self, module):
        name = module.__name__.replace(".", "/") + ("/__init__.py" if hasattr(module, "__path__") else ".py")
        module.__file__ = HOME + name
        exec(compile(self.archive.read(name), module.__file__, "exec"), vars(module))


sys.meta_path.insert(0, Host(archive))  # which -c has left here
from _fpmd.main import main

del sys.meta_path[0]
sys.argv[0] = ""  # as -c has it in sys.path: what leads there is taken away
raise SystemExit(main())
