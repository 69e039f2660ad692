"""From configuration to cells, and from cells to records."""

if __name__ != "tokred.sweeps":
    raise ImportError("import tokred.sweeps, not sweeps: the folder has one import name, so that a class exists once")
