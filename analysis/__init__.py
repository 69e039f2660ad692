"""From records to tables and figures."""

if __name__ != "tokred.analysis":
    raise ImportError(
        "import tokred.analysis, not analysis: the folder has one import name, so that a class exists once"
    )
