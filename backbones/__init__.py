"""The backbones: one family a file, found without an edit of any other."""

if __name__ != "tokred.backbones":
    raise ImportError(
        "import tokred.backbones, not backbones: the folder has one import name, so that a class exists once"
    )
